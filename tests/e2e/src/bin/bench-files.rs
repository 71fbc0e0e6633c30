//! `make bench-files`: files through the central server, beside what people use now.
//!
//! Who goes first changes with every work item and round.

use anyhow::{Context, Result};
use atrium_e2e::bench::{Contender, Inputs, Sample, Work, atrium::Atrium, measure, median, micro, peers};
use atrium_e2e::process::Programs;
use clap::{Parser, ValueEnum};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Report {
    transfers: BTreeMap<String, BTreeMap<String, Vec<Sample>>>,
    metadata: Vec<micro::Figure>,
    missing: Vec<String>,
}

/// Measures files and metadata through the central server, beside nginx, Samba, rsync, etcd and PostgreSQL where they are
/// installed. Prints tables; every sample goes to target/bench/files.json.
#[derive(Parser)]
#[command(name = "bench-files", max_term_width = 100)]
struct Arguments {
    /// Rounds of the transfers; what is compared is interleaved in each
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Entries of the large directory
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    million: u32,
    /// Only one half
    #[arg(long, value_name = "HALF")]
    only: Option<Half>,
    /// Only these transfers; a get needs its put
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    work: Vec<Work>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Half {
    /// Puts and gets
    Transfers,
    /// Creates, look-ups, lists, renames, events
    Metadata,
}

fn main() -> Result<()> {
    common::tls::install_provider();
    let Arguments { rounds, million, only, work } = Arguments::parse();
    let works = if work.is_empty() { Work::ALL.to_vec() } else { work };
    let scratch = tempfile::Builder::new().prefix("atrium-bench-").tempdir()?;
    let mut report = Report { transfers: BTreeMap::new(), metadata: Vec::new(), missing: Vec::new() };
    let mut atrium = Atrium::start(&scratch.path().join("office"))?;

    if only != Some(Half::Metadata) {
        println!("writing inputs");
        std::fs::create_dir_all(scratch.path().join("inputs"))?;
        let inputs = Inputs::write(&scratch.path().join("inputs"))?;
        let (mut others, missing) = peers::start_all(&scratch.path().join("peers"))?;
        for name in &missing {
            println!("skipped, not installed: {name}");
        }
        report.missing = missing;
        for round in 1..=rounds {
            for (at, work) in works.iter().copied().enumerate() {
                let mut all: Vec<&mut dyn Contender> = vec![&mut atrium];
                for other in &mut others {
                    all.push(other.as_mut());
                }
                let first = (round + at) % all.len();
                all.rotate_left(first);
                for contender in all {
                    let name = contender.name().to_owned();
                    let sample = measure(contender, work, &inputs, &scratch.path().join("out"))
                        .with_context(|| format!("{name}: {}", work.title()))?;
                    if let Some(sample) = sample {
                        println!(
                            "round {round}  {:28} {name:22} {:>8.3} s  {}",
                            work.title(),
                            sample.seconds,
                            work.rate(sample.seconds)
                        );
                        report
                            .transfers
                            .entry(work.title().to_owned())
                            .or_default()
                            .entry(name)
                            .or_default()
                            .push(sample);
                    }
                }
            }
        }
    }
    if only != Some(Half::Transfers) {
        println!("metadata ({million} entries take a minute)");
        let runtime = tokio::runtime::Runtime::new()?;
        let office = atrium.office();
        office.add_user("bench", "correct horse bench")?;
        report.metadata = runtime.block_on(micro::run(office, "bench", "correct horse bench", million))?;
    }

    table(&report);
    let programs = Programs::find()?;
    let directory = programs.directory().parent().context("target directory")?.join("bench");
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("files.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&report)?)?;
    println!("\nall samples: {}", file.display());
    Ok(())
}

fn table(report: &Report) {
    if !report.transfers.is_empty() {
        println!(
            "\n| work | system | median | rate | ratio of Atrium's rate | CPU s/GiB server + client | peak MiB server + client |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- |");
    }
    for work in Work::ALL {
        let Some(systems) = report.transfers.get(work.title()) else { continue };
        let middle = |name: &str, get: fn(&Sample) -> f64| {
            systems.get(name).map_or(f64::NAN, |s| median(&mut s.iter().map(get).collect::<Vec<_>>()))
        };
        let ours = middle("atrium", |s| s.seconds);
        for name in systems.keys() {
            let seconds = middle(name, |s| s.seconds);
            let gib = work.bytes() as f64 / (1u64 << 30) as f64;
            let cpu = middle(name, |s| s.server_cpu_seconds + s.client_cpu_seconds) / gib;
            println!(
                "| {} | {name} | {seconds:.3} s | {} | {} | {cpu:.2} | {:.0} + {:.0} |",
                work.title(),
                work.rate(seconds),
                if name == "atrium" { "1".to_owned() } else { format!("{:.2}", seconds / ours) },
                middle(name, |s| s.server_peak_bytes as f64) / 1_048_576.0,
                middle(name, |s| s.client_peak_bytes as f64) / 1_048_576.0,
            );
        }
    }
    if !report.metadata.is_empty() {
        println!("\n| metadata | figure |\n| --- | --- |");
        for figure in &report.metadata {
            println!("| {} | {:.2} {} |", figure.name, figure.value, figure.unit);
        }
    }
}
