//! What file work costs the one thread that writes: `cargo run --example files_cost` prints times of a commit of 1,000 new
//! small files, of a listing of 100,000 entries, and of a rename above them, on a store in memory, so that no disk is in
//! the figures.

use central_server::app::answers::Once;
use central_server::app::caller::Caller;
use central_server::app::commits::{self, Expected, FileCommit};
use central_server::app::directories::{self, NewDirectory};
use central_server::app::moves::{self, Move};
use central_server::app::{App, entries, uploads};
use central_server::settings::Settings;
use common::chunk::{ChunkStore, ChunkStoreSettings};
use common::clock::SystemClock;
use common::error::Result;
use common::model::{ChunkId, ChunkRef, EntryName, EntryPath, UploadId};
use common::store::Store;
use std::sync::Arc;
use std::time::Instant;

const FILES: usize = 100_000;

fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let settings = Arc::new(Settings::in_directory(directory.path()));
    let chunks = ChunkStore::open(&ChunkStoreSettings::new(directory.path().join("chunks")))?;
    let app = App::new(Store::memory(), chunks, Arc::new(SystemClock), settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(runtime.block_on(measure(&app))?)
}

async fn measure(app: &App) -> Result<()> {
    let admin = Caller { local_admin: true, ..Caller::default() };
    let new =
        NewDirectory { name: EntryName::new("plans")?, grants: Vec::new(), quota_bytes: 0, case_sensitive: false };
    directories::create(app, &admin, new, Once::always()).await?;
    let upload = UploadId::generate();
    let owned = uploads::begin(app, &admin, upload)?;
    let data = bytes::Bytes::from_static(b"a small file");
    let chunk = ChunkRef { id: ChunkId::of(&data), len: data.len() as u32 };
    app.chunks.append(chunk.id, &[data], owned.lease())?;
    owned.arrived(&[chunk])?;

    let mut times = Vec::new();
    for part in 0..FILES / commits::MAX_FILES {
        let files = (0..commits::MAX_FILES)
            .map(|n| {
                Ok(FileCommit {
                    path: EntryPath::new("public/plans", &format!("a/b/file-{part:03}-{n:04}.txt"))?,
                    chunks: vec![chunk],
                    expected: Expected::Any,
                    modify_time: None,
                    mode: 0o644,
                    make_parents: true,
                    fencing_token: 0,
                })
            })
            .collect();
        let begin = Instant::now();
        let results = commits::commit(app, &admin, upload, files).await?;
        times.push(begin.elapsed());
        assert!(results.iter().all(Result::is_ok), "a file was refused");
    }
    times.sort();
    println!(
        "commit of 1,000 new files: median {:?}, first of {} calls {:?}",
        times[times.len() / 2],
        times.len(),
        times[0]
    );

    let path = EntryPath::new("public/plans", "a/b")?;
    let begin = Instant::now();
    let (mut token, mut count) = (String::new(), 0);
    loop {
        let page = entries::list(app, &admin, &path, 5_000, &token).await?;
        count += page.entries.len();
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    println!("listing {count} entries with attributes: {:?}", begin.elapsed());

    let begin = Instant::now();
    let order = Move {
        source: EntryPath::new("public/plans", "a")?,
        destination: EntryPath::new("public/plans", "c")?,
        overwrite: false,
        etag: String::new(),
    };
    moves::move_entry(app, &admin, order, Once::always()).await?;
    println!("renaming a directory above them: {:?}", begin.elapsed());
    Ok(())
}
