//! `print`.

use super::upload::{Before, Source, upload};
use super::{Context, all, patiently, wish_id};
use crate::args::Print;
use crate::commands::Several;
use crate::commands::peers::warn_of;
use crate::commands::server_print::{self, ServerPrint};
use crate::exit::Exit;
use crate::output::format::{bytes, count, safe};
use crate::output::schema::PrintJob;
use crate::output::usage;
use crate::peer::Peer;
use crate::progress::Meter;
use crate::prompt::{self, Secret};
use common::error::{Error, Reason, Result};
use common::model::{Pin, Right};
use proto::peer::v1 as wire;
use proto::v1;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use wire::print_request::Part;

/// Longest name of a job.
const NAME_MAX: usize = 255;

pub(in crate::commands) async fn print(c: &Context, args: Print) -> Result<Exit> {
    let from_stdin = args.files.iter().filter(|f| *f == Path::new("-")).count();
    if from_stdin > 1 || (from_stdin == 1 && args.pin_file.as_deref() == Some(Path::new("-"))) {
        return Err(usage("standard input can be read only once", "name files, or give the PIN in a file"));
    }
    let pin = match args.pin || args.pin_file.is_some() {
        true => Some(new_pin(c, args.pin_file.as_deref())?),
        false => None,
    };
    if let Some(printer) = args.via_server {
        let options = v1::PrintOptions {
            copies: args.copies,
            sides: args.sides.map(|s| s.word().to_owned()).unwrap_or_default(),
            color_mode: if args.mono { "monochrome".to_owned() } else { String::new() },
            media: args.media.unwrap_or_default(),
            pages: args.pages.unwrap_or_default(),
        };
        let what = ServerPrint {
            files: args.files,
            printer,
            options,
            hold: args.hold,
            priority: args.priority.unwrap_or(0),
            pin,
            name: args.name.unwrap_or_default(),
            format: args.format.unwrap_or_default(),
        };
        return server_print::print(c, what).await;
    }
    let peer = c.peer()?;
    let printer = match &args.at {
        Some(printer) => printer.to_string(),
        None => only_printer(c, &peer).await?,
    };
    let meter = Meter::new(&c.out, "print");
    let (mut several, mut documents) = (Several::default(), Vec::new());
    for path in &args.files {
        match open(path).await {
            Ok(document) => documents.push(document),
            Err(error) => several.note(&c.out, Err(error))?,
        }
    }
    let mut before = Before {
        total_bytes: documents.iter().map(|d| d.size).sum(),
        total_files: documents.len() as u64,
        ..Before::default()
    };
    for document in &documents {
        let header = header(&args, &printer, document, pin.as_ref());
        let sent = send(&peer, document, &header, (&meter, before)).await;
        before.bytes += document.size;
        before.files += 1;
        if before.files == before.total_files {
            meter.finish();
        }
        let told = sent.and_then(|job| c.out.changed(&PrintJob::from(job), taken_text));
        several.note(&c.out, told)?;
    }
    let exit = several.end(&c.out)?;
    c.out.hint("atrium jobs");
    Ok(exit)
}

/// A file that is printed.
struct Document {
    file: Arc<File>,
    name: String,
    size: u64,
}

/// Standard input is kept in a file without a name first: it can be sent again then, and its size is known.
async fn open(path: &Path) -> Result<Document> {
    let shown = path.display().to_string();
    let path = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || -> std::io::Result<(File, u64)> {
        if path == Path::new("-") {
            let mut file = tempfile::tempfile()?;
            let size = std::io::copy(&mut std::io::stdin().lock(), &mut file)?;
            return Ok((file, size));
        }
        let file = File::open(&path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(std::io::Error::other("it is no file"));
        }
        Ok((file, metadata.size()))
    });
    let opened = opened.await.map_err(|e| Error::internal("a thread ended").caused_by(e))?;
    let (file, size) = opened.map_err(|e| {
        let reason = if e.kind() == std::io::ErrorKind::NotFound { Reason::EntryUnknown } else { Reason::IoFailed };
        Error::new(reason, format!("{shown} cannot be read"))
            .why_is(e.to_string())
            .fix_is("check the file's name and rights; - is standard input")
    })?;
    if size == 0 {
        return Err(usage(format!("{shown} is empty"), "print a file with something in it"));
    }
    let name = match shown.as_str() {
        "-" => "standard input".to_owned(),
        path => path.rsplit('/').next().unwrap_or(path).to_owned(),
    };
    Ok(Document { file: Arc::new(file), name, size })
}

fn header(args: &Print, printer: &str, document: &Document, pin: Option<&Secret>) -> wire::PrintHeader {
    let job_name = super::cut(args.name.as_ref().unwrap_or(&document.name), NAME_MAX).to_owned();
    wire::PrintHeader {
        device: printer.to_owned(),
        job_name,
        format: args.format.clone().unwrap_or_default(),
        copies: args.copies,
        sides: args.sides.map_or_else(String::new, |s| s.word().to_owned()),
        color_mode: if args.mono { "monochrome".to_owned() } else { String::new() },
        media: args.media.clone().unwrap_or_default(),
        priority: args.priority.unwrap_or(0),
        hold: args.hold,
        pin: pin.map_or_else(String::new, |p| p.as_str().to_owned()),
        request_id: wish_id(),
        size_bytes: document.size,
        pages: args.pages.clone().unwrap_or_default(),
    }
}

/// Sends it, again under the same id if the connection breaks: the printer's machine knows it then and prints it once.
async fn send(
    peer: &Peer,
    document: &Document,
    header: &wire::PrintHeader,
    (meter, before): (&Meter, Before),
) -> Result<wire::PrintJob> {
    patiently(meter, || {
        let source = Source { file: document.file.clone(), name: safe(&document.name), offset: 0, size: document.size };
        let first = wire::PrintRequest { part: Some(Part::Header(header.clone())) };
        let data = |piece| wire::PrintRequest { part: Some(Part::Data(piece)) };
        async move {
            let mut client = peer.bulk_devices();
            upload(source, first, data, (meter, before), move |messages| async move { client.print(messages).await })
                .await
        }
    })
    .await
}

/// The printer that is meant if none is named.
async fn only_printer(c: &Context, peer: &Peer) -> Result<String> {
    let answer = all(peer, wire::DeviceKind::Printer).await?;
    let usable: Vec<String> =
        answer.devices.into_iter().filter(|d| d.right >= Right::Write as i32).map(|d| d.address).collect();
    match usable.as_slice() {
        [only] => Ok(only.clone()),
        [] => {
            warn_of(c, answer.problems);
            Err(Error::new(Reason::ResourceUnknown, "there is no printer that you may print on")
                .fix_is("`atrium devices --kind printer` shows all; ask their owners for the right to print"))
        }
        several => {
            let names: Vec<String> = several.iter().take(8).map(|a| safe(a)).collect();
            let names = names.join(", ");
            Err(usage(
                format!("there are {} printers: {names}", several.len()),
                "name one: atrium print FILE --at NAME",
            ))
        }
    }
}

fn new_pin(c: &Context, file: Option<&Path>) -> Result<Secret> {
    let pin = prompt::secret(&c.out, file, "PIN", "--pin-file")?;
    if !Pin::is_good(pin.as_str()) {
        return Err(usage("the PIN is too short or too long", "choose one of 4 to 32 characters"));
    }
    Ok(pin)
}

fn taken_text(job: &PrintJob) -> String {
    let mut words = vec![bytes(job.size_bytes)];
    words.extend((job.sheets > 0).then(|| count(job.sheets, "sheet", "sheets")));
    words.extend((job.position > 0).then(|| format!("{} before it", job.position)));
    words.extend(job.needs_pin.then(|| "waits for its PIN".to_owned()));
    words.extend((job.state == "pending-held" && !job.needs_pin).then(|| "held".to_owned()));
    words.extend(job.state_reason.as_deref().map(safe));
    format!("{}: {} ({})", safe(&job.id), safe(&job.name), words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn args(line: &[&str]) -> Print {
        let cli = Cli::try_parse_from([&["atrium", "print"], line].concat()).unwrap();
        let Command::Print(args) = cli.command else { panic!() };
        args
    }

    #[test]
    fn options_become_what_ipp_calls_them() {
        let document = Document { file: Arc::new(tempfile::tempfile().unwrap()), name: "ä".repeat(200), size: 7 };
        let args = args(&["x.pdf", "--sides", "long", "--mono", "--media", "a4", "--pages", "1-2,5", "--hold"]);
        let header = |pin: Option<&Secret>| super::header(&args, "laser", &document, pin);
        let h = header(None);
        assert_eq!((h.sides.as_str(), h.color_mode.as_str()), ("two-sided-long-edge", "monochrome"));
        assert_eq!((h.media.as_str(), h.pages.as_str(), h.hold), ("iso_a4_210x297mm", "1-2,5", true));
        assert_eq!((h.copies, h.priority, h.size_bytes, h.request_id.len()), (1, 0, 7, 16));
        assert_eq!(h.job_name.len(), 254, "cut between two characters");
        assert_ne!(h.request_id, header(None).request_id, "each file is a wish of its own");
        assert_eq!(header(Some(&Secret::new("1234".into()))).pin, "1234");
    }

    #[tokio::test]
    async fn what_cannot_be_printed_is_said_before_anything_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        assert_eq!(open(&empty).await.err().unwrap().reason(), "USAGE");
        assert!(open(dir.path()).await.err().unwrap().is(Reason::IoFailed));
        assert!(open(&dir.path().join("missing")).await.err().unwrap().is(Reason::EntryUnknown));
    }
}
