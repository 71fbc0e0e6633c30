//! `send`, `inbox`, `outbox`.

use super::absolute_text;
use crate::args::{Inbox, InboxAction, InboxRules, Outbox, OutboxAction, Send};
use crate::commands::{Context, call};
use crate::exit::Exit;
use crate::output::format::{bytes, count, minute, pad, safe};
use crate::output::schema::{AcceptRules, Delivery, InboxItem, OutboxItem};
use crate::output::usage;
use crate::progress::{Counts, Meter};
use bytes::Bytes;
use common::error::{Error, Result};
use common::status::from_status;
use proto::peer::v1 as wire;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use wire::send_request::Part;

/// Bytes of a stream in one message.
const PIECE: usize = 256 * 1024;
/// Messages that wait for the peer.
const WAITING: usize = 8;

/// What is sent, and to whom.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Files and folders; none for standard input.
    paths: Vec<String>,
    to: Vec<String>,
}

fn plan(args: &Send) -> Result<Plan> {
    let (paths, to) = match (args.to.is_empty(), args.words.split_first()) {
        (true, Some((first, rest))) if !rest.is_empty() => (vec![first.clone()], rest.to_vec()),
        (true, _) => {
            return Err(usage("to whom?", "name people after the file: atrium send report.pdf anna bert"));
        }
        (false, _) => (args.words.clone(), args.to.clone()),
    };
    if paths.iter().any(|p| p == "-") {
        if paths.len() > 1 {
            return Err(usage("standard input cannot be sent together with files", "send them one after the other"));
        }
        return Ok(Plan { paths: Vec::new(), to });
    }
    if args.name.is_some() {
        return Err(usage("--name is for standard input; files keep their names", "leave --name out"));
    }
    if let Some(path) = paths.iter().find(|p| Path::new(p).symlink_metadata().is_err()) {
        return Err(usage(
            format!("there is no file or folder {}", safe(path)),
            "name one file or folder and then the receivers, or several and then --to for each receiver",
        ));
    }
    let paths = paths.iter().map(|p| absolute_text(Path::new(p))).collect::<Result<_>>()?;
    Ok(Plan { paths, to })
}

pub(in crate::commands) async fn send(c: &Context, args: Send) -> Result<Exit> {
    let plan = plan(&args)?;
    let from_stdin = plan.paths.is_empty();
    let header = wire::SendHeader {
        paths: plan.paths,
        stream_name: if from_stdin { args.name.unwrap_or_else(|| "standard-input".to_owned()) } else { String::new() },
        to: plan.to,
        note: args.note,
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    let title = match header.paths.as_slice() {
        [] => header.stream_name.clone(),
        paths => paths.iter().filter_map(|p| p.rsplit('/').next()).collect::<Vec<_>>().join(", "),
    };
    // The receiver is held until the call begins, so this cannot fail.
    let _ = sender.send(wire::SendRequest { part: Some(Part::Header(header)) }).await;
    let (failed, mut failure) = oneshot::channel();
    let feeding = tokio::spawn(async move {
        let fed = if from_stdin { feed(tokio::io::stdin(), &sender).await } else { Ok(()) };
        if let Err(error) = fed {
            // The end of the stream would mean that all of it was sent, so it must not end.
            let _ = failed.send(error);
            sender.closed().await;
        }
    });
    let mut stream = call(c.peer()?.bulk_client().send(ReceiverStream::new(receiver))).await?;
    let meter = Meter::new(&c.out, "send");
    let mut sent =
        OutboxItem { parcel_id: String::new(), title, total_bytes: 0, create_time: None, deliveries: Vec::new() };
    loop {
        let answer = tokio::select! {
            answer = stream.message() => answer.map_err(|s| from_status(&s))?,
            failed = &mut failure, if !failure.is_terminated() => match failed {
                Ok(error) => return Err(error),
                // The input has ended well.
                Err(_) => continue,
            },
        };
        let Some(answer) = answer else { break };
        meter.set(Counts {
            done_bytes: answer.prepared_bytes,
            total_bytes: answer.total_bytes.max(answer.prepared_bytes),
            done_files: 0,
            total_files: 0,
        });
        sent.parcel_id = answer.parcel_id;
        sent.total_bytes = answer.total_bytes;
        sent.deliveries = answer.deliveries.into_iter().map(Delivery::from).collect();
        let safe_on_disk = !sent.parcel_id.is_empty();
        if safe_on_disk && (!args.wait || sent.deliveries.iter().all(is_over)) {
            break;
        }
    }
    meter.finish();
    feeding.abort();
    if sent.parcel_id.is_empty() {
        return Err(Error::internal("the peer took the parcel without giving it an id"));
    }
    c.out.changed(&sent, |s| format!("sent {}\n{}", safe(&s.title), deliveries(s)))?;
    c.out.hint("atrium outbox");
    let refused = sent.deliveries.iter().any(|d| is_over(d) && d.state != "delivered");
    Ok(if args.wait && refused { Exit::Partly } else { Exit::Ok })
}

fn is_over(d: &Delivery) -> bool {
    matches!(d.state.as_str(), "delivered" | "refused" | "cancelled" | "expired")
}

/// Reads to the end; the receiver that goes away ends it too.
async fn feed(mut from: impl AsyncRead + Unpin, to: &mpsc::Sender<wire::SendRequest>) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        let part = Part::Data(Bytes::copy_from_slice(&buffer[..n]));
        if to.send(wire::SendRequest { part: Some(part) }).await.is_err() {
            return Ok(());
        }
    }
}

fn deliveries(item: &OutboxItem) -> String {
    let line = |d: &Delivery| {
        let state = match d.state.as_str() {
            "queued" => "waits until it is there",
            "asking" => "waits for an answer",
            "running" => "on its way",
            other => other,
        };
        let time = d.receipt_time.as_deref().map(|t| format!(" {}", minute(Some(t)))).unwrap_or_default();
        let message = if d.message.is_empty() { String::new() } else { format!(": {}", safe(&d.message)) };
        let kept = match d.kept_by.as_slice() {
            [] => String::new(),
            by => format!(", kept by {}", safe(&by.join(", "))),
        };
        format!("  {}  {}  {state}{time}{kept}{message}", pad(&safe(&d.person), 10), pad(&safe(&d.node_name), 28))
    };
    item.deliveries.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub(in crate::commands) async fn outbox(c: &Context, args: Outbox) -> Result<Exit> {
    let mut client = c.peer()?.client();
    if let Some(OutboxAction::Cancel { id }) = args.action {
        let item = OutboxItem::from(call(client.cancel_parcel(wire::CancelParcelRequest { parcel_id: id })).await?);
        c.out.changed(&item, |i| format!("taken back: {}\n{}", safe(&i.title), deliveries(i)))?;
        return Ok(Exit::Ok);
    }
    let answer = call(client.list_outbox(wire::ListOutboxRequest {})).await?;
    let mut list = c.out.list::<OutboxItem>(&[])?;
    for item in answer.items {
        list.item(&OutboxItem::from(item), |i| {
            let (time, size) = (minute(i.create_time.as_deref()), bytes(i.total_bytes));
            format!("{}  {time}  {size:>10}  {}\n{}", i.parcel_id, safe(&i.title), deliveries(i))
        })?;
    }
    list.end("nothing was sent")?;
    Ok(Exit::Ok)
}

pub(in crate::commands) async fn inbox(c: &Context, args: Inbox) -> Result<Exit> {
    let answer = match args.action {
        None | Some(InboxAction::List) => return list(c).await,
        Some(InboxAction::Rules(rules)) => return change_rules(c, rules).await,
        Some(InboxAction::Refuse { id }) => wire::AnswerParcelRequest { parcel_id: id, ..Default::default() },
        Some(InboxAction::Accept { id, always, into }) => wire::AnswerParcelRequest {
            parcel_id: id,
            accept: true,
            always,
            directory: into.as_deref().map(absolute_text).transpose()?.unwrap_or_default(),
        },
    };
    let accepted = answer.accept;
    let item = InboxItem::from(call(c.peer()?.client().answer_parcel(answer)).await?);
    c.out.changed(&item, |i| match accepted {
        true => format!("{} from {} goes to {}", safe(&i.title), safe(&i.person), safe(&i.path)),
        false => format!("{} from {} is refused", safe(&i.title), safe(&i.person)),
    })?;
    Ok(Exit::Ok)
}

async fn list(c: &Context) -> Result<Exit> {
    let answer = call(c.peer()?.client().list_inbox(wire::ListInboxRequest {})).await?;
    let mut list = c.out.list::<InboxItem>(&[])?;
    let mut asks = 0;
    for item in answer.items {
        let item = InboxItem::from(item);
        asks += u64::from(item.state == "asks");
        list.item(&item, line)?;
    }
    list.end("the inbox is empty")?;
    if asks > 0 {
        c.out.hint("atrium inbox accept ID, or atrium inbox refuse ID");
    }
    Ok(Exit::Ok)
}

fn line(i: &InboxItem) -> String {
    let state = match i.state.as_str() {
        "asks" => "waits for your answer".to_owned(),
        "running" => format!("coming, {} of {}", bytes(i.done_bytes), bytes(i.total_bytes)),
        "done" => format!("in {}", safe(&i.path)),
        other => other.to_owned(),
    };
    let note = if i.note.is_empty() { String::new() } else { format!("\n    \"{}\"", safe(&i.note)) };
    format!(
        "{}  {}  {}  {} ({}, {})\n    {state}{note}",
        i.parcel_id,
        minute(i.create_time.as_deref()),
        pad(&safe(&i.person), 10),
        safe(&i.title),
        count(i.file_count, "file", "files"),
        bytes(i.total_bytes),
    )
}

async fn change_rules(c: &Context, change: InboxRules) -> Result<Exit> {
    let mut client = c.peer()?.client();
    let answer = call(client.list_inbox(wire::ListInboxRequest {})).await?;
    let old = answer.rules.unwrap_or_default();
    let rules = changed(old.clone(), &change)?;
    if rules == old {
        c.out.object(&AcceptRules::from(old), rules_text)?;
        return Ok(Exit::Ok);
    }
    let request = wire::SetAcceptRulesRequest { rules: Some(rules) };
    let rules = AcceptRules::from(call(client.set_accept_rules(request)).await?);
    c.out.changed(&rules, rules_text)?;
    Ok(Exit::Ok)
}

/// The rules with these changes; who is named in one list leaves the other.
fn changed(mut rules: wire::AcceptRules, change: &InboxRules) -> Result<wire::AcceptRules> {
    let named = change.accept.iter().chain(&change.refuse).chain(&change.ask);
    for person in named {
        rules.accept_persons.retain(|p| p != person);
        rules.refuse_persons.retain(|p| p != person);
    }
    rules.accept_persons.extend(change.accept.iter().cloned());
    rules.refuse_persons.extend(change.refuse.iter().cloned());
    rules.accept_all = change.accept_all.unwrap_or(rules.accept_all);
    rules.ask_above_bytes = change.ask_above.unwrap_or(rules.ask_above_bytes);
    if let Some(directory) = &change.directory {
        rules.directory = absolute_text(directory)?;
    }
    Ok(rules)
}

fn rules_text(r: &AcceptRules) -> String {
    let accept = match (r.accept_all, r.accept_persons.as_slice()) {
        (true, _) => "everyone in the office".to_owned(),
        (false, []) => "nobody".to_owned(),
        (false, people) => safe(&people.join(", ")),
    };
    let mut text = format!("taken without asking: {accept}");
    if r.ask_above_bytes > 0 {
        text.push_str(&format!(", up to {}", bytes(r.ask_above_bytes)));
    }
    if !r.refuse_persons.is_empty() {
        text.push_str(&format!("\nrefused: {}", safe(&r.refuse_persons.join(", "))));
    }
    format!("{text}\nparcels go to {}", safe(&r.directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str], to: &[&str]) -> Send {
        let own = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect();
        Send { words: own(words), to: own(to), note: String::new(), name: None, wait: false }
    }

    #[test]
    fn the_first_word_is_sent_unless_receivers_are_named_by_option() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, b"x").unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (a, b) = (file("a"), file("b"));
        let one = plan(&args(&[&a, "anna", "bert"], &[])).unwrap();
        assert_eq!(one, Plan { paths: vec![a.clone()], to: vec!["anna".into(), "bert".into()] });
        let two = plan(&args(&[&a, &b], &["anna"])).unwrap();
        assert_eq!(two, Plan { paths: vec![a.clone(), b], to: vec!["anna".into()] });
        assert_eq!(plan(&args(&["-", "anna"], &[])).unwrap().paths, Vec::<String>::new());
        assert!(plan(&args(&[&a], &[])).is_err(), "to whom?");
        assert!(plan(&args(&[&a, "-"], &["anna"])).is_err());
        assert!(plan(&args(&["missing", "anna"], &[])).unwrap_err().message().contains("missing"));
    }

    #[test]
    fn a_person_is_in_one_list_of_the_rules_only() {
        let old = wire::AcceptRules {
            accept_persons: vec!["anna".into(), "bert".into()],
            refuse_persons: vec!["mallory".into()],
            ..Default::default()
        };
        let change = InboxRules {
            accept: vec!["mallory".into()],
            refuse: vec!["anna".into()],
            ask: vec!["bert".into()],
            accept_all: None,
            ask_above: Some(5),
            directory: None,
        };
        let new = changed(old, &change).unwrap();
        assert_eq!((new.accept_persons, new.refuse_persons), (vec!["mallory".to_owned()], vec!["anna".to_owned()]));
        assert_eq!(new.ask_above_bytes, 5);
    }

    #[tokio::test]
    async fn a_stream_is_sent_in_pieces_and_in_order() {
        let content: Vec<u8> = (0..PIECE * 2 + 7).map(|i| i as u8).collect();
        let (sender, mut receiver) = mpsc::channel(WAITING);
        feed(content.as_slice(), &sender).await.unwrap();
        drop(sender);
        let mut got = Vec::new();
        while let Some(wire::SendRequest { part: Some(Part::Data(data)) }) = receiver.recv().await {
            assert!(data.len() <= PIECE);
            got.extend_from_slice(&data);
        }
        assert!(got == content);
    }
}
