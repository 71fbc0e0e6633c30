//! `make bench-peers`: peers without a server, in a lab of network namespaces, beside Syncthing and BitTorrent (aria2).
//!
//! Needs root and nftables for the lab; says so and ends well where they are missing.

use anyhow::{Context, Result};
use atrium_e2e::bench::pair::{self, Load};
use atrium_e2e::bench::swarm::{self, Distribution, Shape};
use atrium_e2e::bench::{Inputs, Sample, median};
use atrium_e2e::process::Programs;
use clap::{Parser, ValueEnum};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Default, Serialize)]
struct Report {
    pairs: BTreeMap<String, BTreeMap<String, Vec<Sample>>>,
    swarms: BTreeMap<String, Swarm>,
    missing: Vec<String>,
}

#[derive(Serialize)]
struct Swarm {
    shape: Shape,
    floor_seconds: f64,
    systems: BTreeMap<String, Vec<Distribution>>,
}

/// Measures peers without a server in a lab of network namespaces, beside Syncthing and aria2 where they are installed.
/// Needs root and nftables. Prints tables; every sample goes to target/bench/peers.json.
#[derive(Parser)]
#[command(name = "bench-peers", max_term_width = 100)]
struct Arguments {
    /// Rounds; what is compared is interleaved in each
    #[arg(long, default_value_t = 1, value_name = "N")]
    rounds: usize,
    /// Only these
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    only: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// 1 GiB, one node to another
    Big,
    /// 10,000 files of 4 KiB, one node to another
    Small,
    /// 200 MB to 8 nodes
    Swarm8,
    /// 1 GB to 20 nodes
    Swarm20,
}

fn main() -> Result<()> {
    let Arguments { rounds, only } = Arguments::parse();
    let wanted = |part: Part| only.is_empty() || only.contains(&part);
    let mut report = Report::default();
    for (name, program) in [("Syncthing", "syncthing"), ("aria2", "aria2c")] {
        if std::process::Command::new(program).arg("--version").output().is_err() {
            println!("skipped, not installed: {name}");
            report.missing.push(name.to_owned());
        }
    }
    for round in 1..=rounds {
        if wanted(Part::Big) || wanted(Part::Small) {
            pairs(&mut report, round, &wanted)?;
        }
        for (part, shape) in [
            (Part::Swarm8, Shape { nodes: 8, bytes: 200_000_000, mbit: 100 }),
            (Part::Swarm20, Shape { nodes: 20, bytes: 1_000_000_000, mbit: 100 }),
        ] {
            if wanted(part) {
                swarms(&mut report, round, shape)?;
            }
        }
    }
    table(&report);
    let programs = Programs::find()?;
    let directory = programs.directory().parent().context("target directory")?.join("bench");
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("peers.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&report)?)?;
    println!("\nall samples: {}", file.display());
    Ok(())
}

fn scratch() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("atrium-bench-").tempdir()?)
}

fn pairs(report: &mut Report, round: usize, wanted: &dyn Fn(Part) -> bool) -> Result<()> {
    type Contender = fn(Load, &Inputs, &Path) -> Result<Option<Sample>>;
    let directory = scratch()?;
    let inputs = Inputs::write(directory.path())?;
    for load in Load::ALL {
        if !wanted(if load == Load::Big { Part::Big } else { Part::Small }) {
            continue;
        }
        let mut contenders: [(&str, Contender); 2] = [("atrium", pair::atrium), ("syncthing", pair::syncthing)];
        contenders.rotate_left(round % 2);
        for (name, contender) in contenders {
            let own = scratch()?;
            let sample = contender(load, &inputs, own.path()).with_context(|| format!("{name}: {}", load.title()))?;
            let Some(sample) = sample else { continue };
            println!("round {round}  {:36} {name:10} {:>8.3} s", load.title(), sample.seconds);
            let systems = report.pairs.entry(load.title().to_owned()).or_default();
            systems.entry(name.to_owned()).or_default().push(sample);
        }
    }
    Ok(())
}

fn swarms(report: &mut Report, round: usize, shape: Shape) -> Result<()> {
    type Contender = fn(Shape, &Path) -> Result<Option<Distribution>>;
    let title = format!("{} MB to {} nodes, {} Mbit/s each", shape.bytes / 1_000_000, shape.nodes, shape.mbit);
    let mut contenders: [(&str, Contender); 2] = [("atrium", swarm::atrium), ("aria2", swarm::aria2)];
    contenders.rotate_left(round % 2);
    for (name, contender) in contenders {
        let own = scratch()?;
        let Some(went) = contender(shape, own.path()).with_context(|| format!("{name}: {title}"))? else { continue };
        let floor = shape.floor_seconds();
        println!(
            "round {round}  {title:40} {name:8} middle {:.1} s = {:.2} x floor, last {:.1} s = {:.2} x, seed {:.2} copies",
            went.middle(),
            went.middle() / floor,
            went.last(),
            went.last() / floor,
            went.seed_copies
        );
        let swarm = report.swarms.entry(title.clone()).or_insert_with(|| Swarm {
            shape,
            floor_seconds: floor,
            systems: BTreeMap::new(),
        });
        swarm.systems.entry(name.to_owned()).or_default().push(went);
    }
    Ok(())
}

fn table(report: &Report) {
    let middle = |values: &mut dyn Iterator<Item = f64>| median(&mut values.collect::<Vec<_>>());
    if !report.pairs.is_empty() {
        println!("\n| work | system | median | time / Syncthing's | CPU s, both nodes | peak MiB, both |");
        println!("| --- | --- | --- | --- | --- | --- |");
    }
    for (work, systems) in &report.pairs {
        let time = |name: &str| middle(&mut systems.get(name).into_iter().flatten().map(|s| s.seconds));
        for (name, samples) in systems {
            let cpu = middle(&mut samples.iter().map(|s| s.server_cpu_seconds + s.client_cpu_seconds));
            let peak = middle(&mut samples.iter().map(|s| s.server_peak_bytes as f64 / 1_048_576.0));
            let ratio = time(name) / time("syncthing");
            println!("| {work} | {name} | {:.2} s | {ratio:.2} | {cpu:.1} | {peak:.0} |", time(name));
        }
    }
    if !report.swarms.is_empty() {
        println!("\n| work | system | floor | middle node / floor | last node / floor | copies sent by the seed |");
        println!("| --- | --- | --- | --- | --- | --- |");
    }
    for (work, swarm) in &report.swarms {
        for (name, runs) in &swarm.systems {
            let of = |get: fn(&Distribution) -> f64| middle(&mut runs.iter().map(get));
            println!(
                "| {work} | {name} | {:.1} s | {:.2} | {:.2} | {:.2} |",
                swarm.floor_seconds,
                of(Distribution::middle) / swarm.floor_seconds,
                of(Distribution::last) / swarm.floor_seconds,
                of(|d| d.seed_copies)
            );
        }
    }
}
