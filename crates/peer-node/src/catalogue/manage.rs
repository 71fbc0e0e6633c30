//! Sharing folders of this machine, and keeping copies of others' shares.

use common::error::{Error, Reason, Result};
use common::model::{EntryName, fold};
use prost::Message;
use proto::v1::{Grant, Principal};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::access::unknown_share;
use super::beneath::{Root, look_again};
use super::book::{self, Known};
use super::folder::{Folder, FolderRecord, Request};
use super::index::{IndexHandle, IndexHead};
use super::record::{RULES_BYTES_MAX, ShareRecord, Terms};
use super::rules::{RULES_FILE, Rules, joined};
use super::scan;
use super::{Catalogue, FOLDERS_MAX, blocking};
use crate::model::ShareId;

/// How often a rules file that is being written is tried.
const RULES_TRIES: usize = 30;

/// A folder to share.
#[derive(Clone, Debug, Default)]
pub struct NewShare {
    /// Absolute path.
    pub path: PathBuf,
    /// Empty means the folder's name in lower case with '-' for blanks.
    pub name: String,
    /// Who may do what.
    pub grants: Vec<Grant>,
    /// Members with write change it on their own copies.
    pub two_way: bool,
    /// Besides those in `.atriumignore`.
    pub ignore_rules: String,
}

/// What is to be changed of a share; what is left out stays.
#[derive(Clone, Debug, Default)]
pub struct ShareChange {
    /// Adds or replaces the grants of these principals.
    pub set_grants: Vec<Grant>,
    /// Takes the grants of these away.
    pub remove_principals: Vec<Principal>,
    /// Rules besides those in `.atriumignore`.
    pub ignore_rules: Option<String>,
    /// Mode.
    pub two_way: Option<bool>,
}

/// A share with a folder here.
#[derive(Clone, Debug)]
pub struct LocalShare {
    /// As its owner states it.
    pub record: ShareRecord,
    /// The folder.
    pub path: PathBuf,
    /// Another node's share of which this is the copy.
    pub mirror: bool,
    /// Its full address.
    pub address: String,
    /// State of the index.
    pub head: IndexHead,
    /// Everything was looked at since the start.
    pub complete: bool,
    /// Entries looked at so far, if everything is being looked at.
    pub scanning: Option<u64>,
    /// What is not shared and why, the first 100.
    pub problems: Vec<proto::peer::v1::NodeProblem>,
    /// How many there are.
    pub problem_count: u64,
}

/// A name for a folder that was given none.
fn name_of(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    name.split_whitespace().collect::<Vec<_>>().join("-")
}

/// The rules in a folder's file; `None` if the file is being written.
fn rules_file(root: &Root) -> Result<Option<String>> {
    let Ok((file, before)) = root.file(RULES_FILE) else { return Ok(Some(String::new())) };
    if !scan::is_settled(&before.stat) {
        return Ok(None);
    }
    let mut text = Vec::new();
    (&file).take(RULES_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
    if look_again(&file).map(|l| l.stat) != Ok(before.stat) {
        return Ok(None);
    }
    if text.len() > RULES_BYTES_MAX {
        return Err(Error::new(Reason::FieldInvalid, "the file .atriumignore is longer than 16 KiB"));
    }
    let text = String::from_utf8(text);
    text.map(Some).map_err(|_| Error::new(Reason::FieldInvalid, "the file .atriumignore is not UTF-8"))
}

/// The same, once the file rests. Half of the rules would show what the other half hides.
async fn settled_rules(path: &Path) -> Result<String> {
    for _ in 0..RULES_TRIES {
        let path = path.to_owned();
        match blocking(move || rules_file(&Root::open(&path)?)).await? {
            Some(rules) => return Ok(rules),
            None => tokio::time::sleep(scan::SETTLE).await,
        }
    }
    Err(Error::new(Reason::LocalFileChanged, "the file .atriumignore is being written all the time"))
}

impl Catalogue {
    /// Shares a folder. It can be seen at once; its files as they are looked through. The same folder again means: this
    /// is the folder, with these grants.
    ///
    /// # Errors
    /// NOT_JOINED, FOLDER_INVALID, NAME_INVALID, SHARE_EXISTS, SHARE_INVALID, FIELD_INVALID, STORE_LIMIT (256 folders).
    pub async fn share(&self, new: NewShare) -> Result<LocalShare> {
        let _one_at_a_time = self.0.managing.lock().await;
        let office =
            self.0.roster.office().ok_or_else(|| Error::new(Reason::NotJoined, "nothing can be shared yet"))?;
        let path = new.path.clone();
        let (path, root) = blocking(move || {
            let wrong = |why: &str| Error::new(Reason::FolderInvalid, "this cannot be shared").why_is(why.to_owned());
            if !path.is_absolute() {
                return Err(wrong("the path is not absolute"));
            }
            let path = path.canonicalize().map_err(|e| wrong("there is nothing at this path").caused_by(e))?;
            let root = Root::open(&path)?;
            Ok((path, root))
        })
        .await?;
        let file_rules = settled_rules(&path).await?;
        let name = if new.name.is_empty() { name_of(&path) } else { new.name.clone() };
        EntryName::new(name.as_str())?;
        let rules = Rules::new(&joined(&file_rules, &new.ignore_rules))?;
        if let Some(folder) = self.folders().into_iter().find(|f| f.path == path) {
            return self.share_again(&folder, &root, &name, new).await;
        }
        let me = self.0.roster.me();
        if self.0.book.of_owner(&me).iter().any(|k| fold(k.record.name()) == fold(&name)) {
            return Err(Error::new(Reason::ShareExists, format!("there is a share of the name {name:?} already")));
        }
        if self.folders().len() >= FOLDERS_MAX {
            return Err(Error::new(Reason::StoreLimit, "too many shared folders").why_is("a node has at most 256"));
        }
        let terms = Terms {
            two_way: new.two_way,
            grants: new.grants,
            ignore_rules: rules.text().to_owned(),
            ..Terms::new(office, &name)
        };
        let record = terms.sign(&self.0.key)?;
        let stored = FolderRecord::new(&root, &new.ignore_rules, false);
        self.begin_folder(record, stored, rules).await
    }

    async fn share_again(&self, folder: &Arc<Folder>, root: &Root, name: &str, new: NewShare) -> Result<LocalShare> {
        let record = self.record(&folder.share())?;
        if folder.mirror || (!new.name.is_empty() && name != record.name()) {
            return Err(Error::new(
                Reason::ShareExists,
                format!("this folder is shared as {:?} already", record.name()),
            ));
        }
        folder.accept(root);
        let change = ShareChange {
            set_grants: new.grants,
            ignore_rules: (!new.ignore_rules.is_empty()).then_some(new.ignore_rules),
            two_way: new.two_way.then_some(true),
            ..ShareChange::default()
        };
        let share = self.change(folder, change).await?;
        folder.ask(Request::Everything);
        Ok(share)
    }

    async fn begin_folder(&self, record: ShareRecord, stored: FolderRecord, rules: Rules) -> Result<LocalShare> {
        let known = Known { record: record.clone(), hidden: false };
        let (store, share, me) = (self.0.store.clone(), record.share(), self.me_short());
        let (theirs, bytes) = (known.clone(), stored.encode_to_vec());
        // What was kept of another node's index gives way to the folder's own.
        self.0.kept.forget(&share);
        let index = blocking(move || {
            IndexHandle::erase(&store, share)?;
            let at = Folder::store_key(share);
            store.transact_blocking(move |txn| {
                txn.put(at.clone(), bytes.clone())?;
                book::put(txn, &theirs)
            })?;
            IndexHandle::open(store, share, me)
        })
        .await?;
        self.0.book.note(known);
        let folder = self.keep(index, &stored, rules);
        self.changed();
        Ok(self.describe(&folder, record))
    }

    /// Keeps a copy of another node's share in a folder here, which is made if it is missing. The copy has an index of
    /// its own, in which files appear as they are put into the folder; what puts them there is not here.
    ///
    /// # Errors
    /// As [`Catalogue::share`]; SHARE_UNKNOWN if it may not be read.
    pub async fn mirror(&self, share: &ShareId, path: &Path) -> Result<LocalShare> {
        let _one_at_a_time = self.0.managing.lock().await;
        let record = self.record(share)?;
        super::access::require(self.right(share, &self.0.roster.me()), common::model::Right::Read)?;
        if self.0.folders.read().contains_key(share) {
            return Err(Error::new(Reason::ShareExists, "there is a copy of this share already"));
        }
        let path = path.to_owned();
        let root = blocking(move || {
            let wrong = |e: std::io::Error| Error::new(Reason::FolderInvalid, "the folder cannot be made").caused_by(e);
            std::fs::create_dir_all(&path).map_err(wrong)?;
            Root::open(&path.canonicalize().map_err(wrong)?)
        })
        .await?;
        if self.folders().iter().any(|f| f.path == root.path()) || self.folders().len() >= FOLDERS_MAX {
            return Err(Error::new(Reason::ShareExists, "this folder is shared already, or there are 256 of them"));
        }
        let rules = Rules::new(&record.terms().ignore_rules)?;
        self.begin_folder(record, FolderRecord::new(&root, "", true), rules).await
    }

    /// Ends sharing, by name or absolute path. Files stay. Of a mirror: keeps it no longer.
    ///
    /// # Errors
    /// SHARE_UNKNOWN, those of the store.
    pub async fn unshare(&self, which: &str) -> Result<()> {
        let _one_at_a_time = self.0.managing.lock().await;
        let folder = self.local(which)?;
        let share = folder.share();
        if !folder.mirror {
            let record = self.record(&share)?;
            let terms = record.terms().clone();
            self.put_terms(Terms { removed: true, revision: terms.revision + 1, ..terms }).await?;
        }
        folder.ended.cancel();
        folder.index.close();
        self.0.folders.write().remove(&share);
        let store = self.0.store.clone();
        blocking(move || {
            Folder::forget(&store, share)?;
            IndexHandle::erase(&store, share)
        })
        .await?;
        self.changed();
        Ok(())
    }

    /// Changes a share of this node, by name or absolute path.
    ///
    /// # Errors
    /// SHARE_UNKNOWN, SHARE_INVALID, FIELD_INVALID, those of the store.
    pub async fn update(&self, which: &str, change: ShareChange) -> Result<LocalShare> {
        let _one_at_a_time = self.0.managing.lock().await;
        let folder = self.local(which)?;
        if folder.mirror {
            return Err(Error::new(Reason::AccessDenied, "this is a copy of another node's share")
                .fix_is("only its owner can change it"));
        }
        self.change(&folder, change).await
    }

    async fn change(&self, folder: &Arc<Folder>, change: ShareChange) -> Result<LocalShare> {
        let mut terms = self.record(&folder.share())?.terms().clone();
        let before = terms.clone();
        let replaced: Vec<Option<Principal>> = change
            .remove_principals
            .into_iter()
            .map(Some)
            .chain(change.set_grants.iter().map(|g| g.principal.clone()))
            .collect();
        terms.grants.retain(|g| !replaced.contains(&g.principal));
        terms.grants.extend(change.set_grants);
        terms.two_way = change.two_way.unwrap_or(terms.two_way);
        if let Some(own) = change.ignore_rules {
            let file = settled_rules(&folder.path).await?;
            let rules = Rules::new(&joined(&file, &own))?;
            rules.text().clone_into(&mut terms.ignore_rules);
            folder.set_own_rules(&own);
            folder.set_rules(rules);
            folder.ask(Request::Everything);
        }
        self.save(folder).await?;
        if terms != before {
            terms.revision += 1;
            self.put_terms(terms).await?;
        }
        Ok(self.describe(folder, self.record(&folder.share())?))
    }

    async fn save(&self, folder: &Folder) -> Result<()> {
        let (at, bytes, store) =
            (Folder::store_key(folder.share()), folder.record().encode_to_vec(), self.0.store.clone());
        blocking(move || store.transact_blocking(move |txn| txn.put(at.clone(), bytes.clone())).map(drop)).await
    }

    async fn put_terms(&self, terms: Terms) -> Result<()> {
        let record = terms.sign(&self.0.key)?;
        let known = Known { record, hidden: false };
        let (theirs, store) = (known.clone(), self.0.store.clone());
        blocking(move || store.transact_blocking(move |txn| book::put(txn, &theirs)).map(drop)).await?;
        self.0.book.note(known);
        self.changed();
        Ok(())
    }

    /// Reads `.atriumignore`; if the rules are others now, signs a new record. True then.
    pub(super) async fn refresh_rules(&self, folder: &Arc<Folder>) -> Result<bool> {
        let _one_at_a_time = self.0.managing.lock().await;
        let mut terms = self.record(&folder.share())?.terms().clone();
        if folder.mirror || terms.removed || folder.ended.is_cancelled() {
            return Ok(false);
        }
        let file = match settled_rules(&folder.path).await {
            Ok(file) => file,
            // A folder that is not there says nothing about its rules.
            Err(error) if error.is(Reason::FolderInvalid) => return Ok(false),
            Err(error) => return Err(error),
        };
        let rules = Rules::new(&joined(&file, &folder.own_rules()))?;
        if rules.text() == terms.ignore_rules {
            return Ok(false);
        }
        rules.text().clone_into(&mut terms.ignore_rules);
        terms.revision += 1;
        self.put_terms(terms).await?;
        folder.set_rules(rules);
        Ok(true)
    }

    /// Shares with a folder here, in order of names.
    pub fn local_shares(&self) -> Vec<LocalShare> {
        let mut shares: Vec<LocalShare> = self
            .folders()
            .iter()
            .filter_map(|folder| Some(self.describe(folder, self.record(&folder.share()).ok()?)))
            .collect();
        shares.sort_by(|a, b| (a.record.name(), a.record.share()).cmp(&(b.record.name(), b.record.share())));
        shares
    }

    /// One of them, by name, absolute path or id.
    ///
    /// # Errors
    /// SHARE_UNKNOWN; ADDRESS_AMBIGUOUS if several have the name.
    pub fn local_share(&self, which: &str) -> Result<LocalShare> {
        let folder = self.local(which)?;
        Ok(self.describe(&folder, self.record(&folder.share())?))
    }

    fn local(&self, which: &str) -> Result<Arc<Folder>> {
        let by_path = Path::new(which).canonicalize().ok();
        let fits = |folder: &Arc<Folder>| {
            Some(&folder.path) == by_path.as_ref()
                || folder.path == Path::new(which)
                || folder.share().to_string() == which
                || self.record(&folder.share()).is_ok_and(|r| fold(r.name()) == fold(which))
        };
        let mut found: Vec<Arc<Folder>> = self.folders().into_iter().filter(fits).collect();
        if found.len() > 1 {
            return Err(Error::new(Reason::AddressAmbiguous, format!("more than one share here is called {which:?}"))
                .fix_is("name it by the path of its folder"));
        }
        found.pop().ok_or_else(unknown_share)
    }

    fn describe(&self, folder: &Arc<Folder>, record: ShareRecord) -> LocalShare {
        let problems = folder.problems.lock();
        let running = folder.progress.running.load(Ordering::Relaxed);
        LocalShare {
            path: folder.path.clone(),
            mirror: folder.mirror,
            address: format!("{}/{}", self.node_name(&record.owner()), record.name()),
            head: folder.index.head(),
            complete: folder.complete.load(Ordering::Relaxed),
            scanning: running.then(|| folder.progress.seen.load(Ordering::Relaxed)),
            problems: problems.shown(),
            problem_count: problems.count(),
            record,
        }
    }
}
