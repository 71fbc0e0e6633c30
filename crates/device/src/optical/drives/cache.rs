//! Blocks that were read, and who waits for which.

use super::Block;
use super::worker::Fault;
use crate::optical::drive::BLOCK_BYTES;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Damaged blocks that are remembered; a disc has at most 100,000 blocks, a readable one few damaged ones.
const MAX_DAMAGED: usize = 128 << 10;

type Answer = Result<Arc<Block>, Fault>;

/// Blocks of one generation, the longest unused going first.
pub(super) struct Cache {
    generation: u64,
    most: usize,
    blocks: HashMap<u64, Kept>,
    damaged: HashSet<u64>,
    waiting: HashMap<u64, Vec<oneshot::Sender<Answer>>>,
    clock: u64,
}

struct Kept {
    block: Arc<Block>,
    used: u64,
    ahead: bool,
}

/// What is known about a block.
pub(super) enum Found {
    /// Here it is; the first time that a block read ahead is used, it says so.
    Block { block: Arc<Block>, was_ahead: bool },
    /// It has to be read; `first` must say so to the thread.
    Wait { answer: oneshot::Receiver<Answer>, first: bool },
    /// It has a bad sector.
    Damaged,
    /// The disc is another one.
    Changed,
}

impl Cache {
    pub(super) fn new(bytes: u64) -> Self {
        let most = (bytes / u64::from(BLOCK_BYTES)).max(16) as usize;
        let (blocks, damaged, waiting) = Default::default();
        Self { generation: 0, most, blocks, damaged, waiting, clock: 0 }
    }

    /// Another disc, or none: nothing of the old one is given out, and who waits is told.
    pub(super) fn reset(&mut self, generation: u64) {
        self.generation = generation;
        self.blocks.clear();
        self.damaged.clear();
        for reply in self.waiting.drain().flat_map(|(_, all)| all) {
            let _ = reply.send(Err(Fault::Gone));
        }
    }

    pub(super) fn find(&mut self, generation: u64, index: u64) -> Found {
        if generation != self.generation {
            return Found::Changed;
        }
        self.clock += 1;
        if let Some(kept) = self.blocks.get_mut(&index) {
            kept.used = self.clock;
            return Found::Block { block: kept.block.clone(), was_ahead: std::mem::take(&mut kept.ahead) };
        }
        if self.damaged.contains(&index) {
            return Found::Damaged;
        }
        let (reply, answer) = oneshot::channel();
        let waiting = self.waiting.entry(index).or_default();
        let first = waiting.is_empty();
        waiting.retain(|w| !w.is_closed());
        waiting.push(reply);
        Found::Wait { answer, first }
    }

    /// True if it need not be read for the sake of reading ahead.
    pub(super) fn knows(&self, index: u64) -> bool {
        self.blocks.contains_key(&index) || self.damaged.contains(&index) || self.waiting.contains_key(&index)
    }

    /// True if somebody still waits for it. Who has given up is forgotten.
    pub(super) fn is_wanted(&mut self, index: u64) -> bool {
        let wanted = self.waiting.get(&index).is_some_and(|all| all.iter().any(|w| !w.is_closed()));
        if !wanted {
            self.waiting.remove(&index);
        }
        wanted
    }

    /// What a read brought, for all that wait and for later.
    pub(super) fn finish(&mut self, index: u64, result: &Answer, ahead: bool) {
        match result {
            Ok(block) => self.keep(index, block.clone(), ahead),
            Err(Fault::Damaged) if self.damaged.len() < MAX_DAMAGED => drop(self.damaged.insert(index)),
            Err(_) => {}
        }
        for reply in self.waiting.remove(&index).into_iter().flatten() {
            let _ = reply.send(result.clone());
        }
    }

    fn keep(&mut self, index: u64, block: Arc<Block>, ahead: bool) {
        while self.blocks.len() >= self.most {
            let Some(oldest) = self.blocks.iter().min_by_key(|(_, kept)| kept.used).map(|(index, _)| *index) else {
                break;
            };
            self.blocks.remove(&oldest);
        }
        self.clock += 1;
        let ahead = ahead && !self.waiting.contains_key(&index);
        self.blocks.insert(index, Kept { block, used: self.clock, ahead });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn block() -> Answer {
        Ok(Arc::new(Block::new(Bytes::from_static(b"x"))))
    }

    #[test]
    fn one_read_serves_all_that_wait() {
        let mut cache = Cache::new(0);
        let Found::Wait { mut answer, first: true } = cache.find(0, 7) else { panic!() };
        let Found::Wait { answer: mut second, first: false } = cache.find(0, 7) else { panic!() };
        cache.finish(7, &block(), false);
        assert!(answer.try_recv().unwrap().is_ok() && second.try_recv().unwrap().is_ok());
        assert!(matches!(cache.find(0, 7), Found::Block { was_ahead: false, .. }));
    }

    #[test]
    fn the_longest_unused_goes_first_and_the_bound_holds() {
        let mut cache = Cache::new(0);
        for index in 0..100 {
            cache.finish(index, &block(), true);
            assert!(cache.blocks.len() <= 16);
            if index > 0 {
                assert!(matches!(cache.find(0, 0), Found::Block { .. }), "a used one stays");
            }
        }
    }

    #[test]
    fn nothing_of_an_old_disc_is_given_out() {
        let mut cache = Cache::new(0);
        cache.reset(1);
        cache.finish(3, &block(), false);
        let Found::Wait { mut answer, .. } = cache.find(1, 4) else { panic!() };
        cache.reset(2);
        assert!(matches!(answer.try_recv(), Ok(Err(Fault::Gone))));
        assert!(matches!(cache.find(1, 3), Found::Changed));
        assert!(matches!(cache.find(2, 3), Found::Wait { first: true, .. }));
    }

    #[test]
    fn nobody_who_gave_up_makes_work() {
        let mut cache = Cache::new(0);
        let Found::Wait { answer, .. } = cache.find(0, 1) else { panic!() };
        drop(answer);
        assert!(!cache.is_wanted(1));
        assert!(matches!(cache.find(0, 1), Found::Wait { first: true, .. }));
    }
}
