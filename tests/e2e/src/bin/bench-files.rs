//! `make bench-files`: files through the central server, beside what people use now.
//! `bench-files [--rounds N] [--million N] [--only PART] [--work LIST]`, PART one of transfers, metadata; LIST of put_big,
//! get_big, put_changed, put_eight, get_eight, put_small, get_small, separated by commas (a get needs its put).
//!
//! Who goes first changes with every work item and round.

use anyhow::{Context, Result};
use atrium_e2e::bench::{Contender, Inputs, Sample, Work, atrium::Atrium, measure, median, micro, peers};
use atrium_e2e::process::Programs;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Report {
    transfers: BTreeMap<String, BTreeMap<String, Vec<Sample>>>,
    metadata: Vec<micro::Figure>,
    missing: Vec<String>,
}

fn argument(name: &str) -> Option<String> {
    let all: Vec<String> = std::env::args().collect();
    all.iter().position(|a| a == name).and_then(|i| all.get(i + 1)).cloned()
}

fn main() -> Result<()> {
    common::tls::install_provider();
    let rounds: usize = argument("--rounds").map_or(Ok(3), |n| n.parse())?;
    let million: u32 = argument("--million").map_or(Ok(1_000_000), |n| n.parse())?;
    let only = argument("--only");
    let works: Vec<Work> = match argument("--work") {
        None => Work::ALL.to_vec(),
        Some(list) => {
            let named = |n: &str| Work::named(n).with_context(|| format!("there is no work {n:?}"));
            list.split(',').map(named).collect::<Result<_>>()?
        }
    };
    let scratch = tempfile::Builder::new().prefix("atrium-bench-").tempdir()?;
    let mut report = Report { transfers: BTreeMap::new(), metadata: Vec::new(), missing: Vec::new() };
    let mut atrium = Atrium::start(&scratch.path().join("office"))?;

    if only.as_deref() != Some("metadata") {
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
    if only.as_deref() != Some("transfers") {
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
