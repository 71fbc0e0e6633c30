//! Atrium itself, through its command line.

use super::{Contender, Inputs, Work};
use crate::{Office, Person};
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Stdio;

/// A server, an agent and a person.
#[derive(Debug)]
pub struct Atrium {
    office: Office,
    person: Person,
    round: u32,
}

impl Atrium {
    /// Starts it.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(directory: &Path) -> Result<Self> {
        let office = Office::start(directory, &[])?;
        let person = office.person("anna")?;
        Ok(Self { office, person, round: 0 })
    }

    /// The office.
    pub fn office(&mut self) -> &mut Office {
        &mut self.office
    }

    /// Who does the work.
    pub fn person(&self) -> &Person {
        &self.person
    }

    fn each(&self, lists: &[Vec<String>]) -> Result<()> {
        let mut running = Vec::new();
        for list in lists {
            let words: Vec<&str> = list.iter().map(String::as_str).collect();
            running.push(self.person.command(&words).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        }
        for mut child in running {
            ensure!(child.wait()?.success(), "a client failed");
        }
        Ok(())
    }
}

fn words(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|p| (*p).to_owned()).collect()
}

impl Contender for Atrium {
    fn name(&self) -> &str {
        "atrium"
    }

    fn server_pids(&self) -> Vec<u32> {
        self.office_pid().into_iter().collect()
    }

    fn prepare(&mut self, work: Work) -> Result<()> {
        // A new place for each round: nothing that a round before it stored may help.
        if work == Work::PutBig {
            self.round += 1;
            self.office.admin(&["admin", "reclaim"], "")?;
        }
        Ok(())
    }

    fn perform(&mut self, work: Work, inputs: &Inputs, scratch: &Path) -> Result<Option<()>> {
        let place = format!("home:{}", self.round);
        let text = |p: &Path| p.to_string_lossy().into_owned();
        match work {
            Work::PutBig => self.each(&[words(&["put", "-p", &text(&inputs.big), &format!("{place}/big.bin")])])?,
            Work::PutChanged => {
                self.each(&[words(&["put", "-p", &text(&inputs.changed), &format!("{place}/big.bin")])])?
            }
            Work::GetBig => self.each(&[words(&[
                "get",
                "--no-cache",
                &format!("{place}/big.bin"),
                &text(&scratch.join("big.bin")),
            ])])?,
            Work::PutEight | Work::GetEight => {
                std::fs::create_dir_all(scratch.join("eight"))?;
                let pair = |client: u32| -> Vec<String> {
                    let names = [2 * client, 2 * client + 1].map(|i| format!("{i:02}.bin"));
                    // Past the agent's cache, which would answer the second round by itself.
                    let mut list = words(if work == Work::PutEight { &["put"] } else { &["get", "--no-cache"] });
                    if work == Work::PutEight {
                        list.extend(names.iter().map(|n| text(&inputs.eight.join(n))));
                        list.push(format!("{place}/eight/"));
                    } else {
                        list.extend(names.iter().map(|n| format!("{place}/eight/{n}")));
                        list.push(format!("{}/", text(&scratch.join("eight"))));
                    }
                    list
                };
                if work == Work::PutEight {
                    self.person.atrium(&["mkdir", "-p", &format!("{place}/eight")])?;
                }
                self.each(&(0..8).map(pair).collect::<Vec<_>>())?;
            }
            Work::PutSmall => self.each(&[words(&["put", "-p", &text(&inputs.small), &format!("{place}/small")])])?,
            Work::GetSmall => {
                self.each(&[words(&["get", &format!("{place}/small"), &text(&scratch.join("small"))])])?
            }
        }
        Ok(Some(()))
    }
}

impl Atrium {
    fn office_pid(&self) -> Option<u32> {
        self.office.server_id()
    }
}
