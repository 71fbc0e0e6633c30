//! Reading the values of arguments about devices.

use super::place::Address;
use proto::peer::v1::DeviceKind;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest media type or media name.
const WORD_MAX: usize = 255;

/// A device of this machine as it is named to be shared: "printers/laser".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnDevice {
    /// What it is.
    pub kind: DeviceKind,
    /// Its name.
    pub name: String,
}

impl OwnDevice {
    /// The device that is meant if the text has this form: exactly two segments, the first one the word of a kind.
    pub fn of(text: &str) -> Option<Self> {
        let (segment, name) = text.strip_suffix('/').unwrap_or(text).split_once('/')?;
        let kind = kind_of(segment)?;
        let one = !name.is_empty() && !name.contains('/') && !matches!(name, "." | "..");
        one.then(|| Self { kind, name: name.to_owned() })
    }

    /// The same of a path.
    pub fn of_path(path: &Path) -> Option<Self> {
        path.to_str().and_then(Self::of)
    }
}

impl fmt::Display for OwnDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", segment_of(self.kind), self.name)
    }
}

/// The kind whose devices are below this segment.
pub fn kind_of(segment: &str) -> Option<DeviceKind> {
    [DeviceKind::Printer, DeviceKind::Drive, DeviceKind::Disk].into_iter().find(|k| segment_of(*k) == segment)
}

/// The segment of addresses below which devices of a kind are.
pub fn segment_of(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Printer => "printers",
        DeviceKind::Drive => "drives",
        DeviceKind::Disk => "disks",
        DeviceKind::Unspecified => "devices",
    }
}

/// Where a printer's pages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrinterOutput {
    /// Each job becomes a file in it.
    Folder(PathBuf),
    /// A queue of this machine's CUPS.
    Cups(String),
    /// An IPP printer.
    Uri(String),
    /// Other printers of this machine, by name.
    Group(Vec<String>),
}

impl FromStr for PrinterOutput {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let help =
            || "write it like folder:/srv/out, cups:QUEUE, ipp://HOST/ipp/print or group:laser,inkjet".to_owned();
        let (scheme, rest) = text.split_once(':').ok_or_else(help)?;
        match scheme {
            _ if rest.is_empty() => Err(help()),
            "folder" => Ok(Self::Folder(rest.into())),
            "cups" if !rest.contains('/') => Ok(Self::Cups(rest.to_owned())),
            "ipp" | "ipps" if rest.len() > 2 && rest.starts_with("//") => Ok(Self::Uri(text.to_owned())),
            "group" => {
                // "printers/laser" and "laser" are the same printer of this machine.
                let names = rest.split(',').map(|n| n.trim().trim_start_matches("printers/").to_owned());
                let names: Vec<String> = names.collect();
                if names.iter().any(|n| n.is_empty() || n.contains('/')) { Err(help()) } else { Ok(Self::Group(names)) }
            }
            _ => Err(help()),
        }
    }
}

/// Which certificate of a printer is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrinterTrust {
    /// "system", "new", or "sha256:" and a fingerprint.
    Word(String),
    /// A file with certificates.
    File(PathBuf),
}

impl FromStr for PrinterTrust {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("write system, new, sha256:FINGERPRINT, or name a PEM file".to_owned()),
            "system" | "new" => Ok(Self::Word(text.to_owned())),
            _ if text.starts_with("sha256:") => Ok(Self::Word(text.to_owned())),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// The image in a simulated drive; `none` for an empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscImage(pub Option<PathBuf>);

impl FromStr for DiscImage {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("name an image, or none for an empty drive".to_owned()),
            "none" => Ok(Self(None)),
            path => Ok(Self(Some(path.into()))),
        }
    }
}

/// A print job as it is listed: "acme/anna-pc/printers/laser#12", or shorter "laser#12".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRef {
    /// The printer.
    pub printer: Address,
    /// Its number there.
    pub number: u64,
}

impl FromStr for JobRef {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let help = || "write a job as `atrium jobs` shows it: laser#12".to_owned();
        let (printer, number) = text.rsplit_once('#').ok_or_else(help)?;
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let number = number.parse().ok().filter(|n| digits && *n > 0).ok_or_else(help)?;
        Ok(Self { printer: printer.parse().map_err(|_| help())?, number })
    }
}

impl fmt::Display for JobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.printer, self.number)
    }
}

/// Paper by its usual name, or as IPP names it.
pub fn media(text: &str) -> Result<String, String> {
    let known = match text.to_ascii_lowercase().as_str() {
        "a3" => "iso_a3_297x420mm",
        "a4" => "iso_a4_210x297mm",
        "a5" => "iso_a5_148x210mm",
        "a6" => "iso_a6_105x148mm",
        "letter" => "na_letter_8.5x11in",
        "legal" => "na_legal_8.5x14in",
        "tabloid" | "ledger" => "na_ledger_11x17in",
        _ => "",
    };
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    match known {
        "" if text.contains('_') && text.len() <= WORD_MAX && text.bytes().all(word) => Ok(text.to_owned()),
        "" => Err("name a3, a4, a5, a6, letter, legal, tabloid, or write it like iso_a4_210x297mm".to_owned()),
        known => Ok(known.to_owned()),
    }
}

/// A media type like "application/pdf".
pub fn media_type(text: &str) -> Result<String, String> {
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+._".contains(&b));
    match text.split_once('/') {
        Some((a, b)) if word(a) && word(b) && text.len() <= WORD_MAX => Ok(text.to_ascii_lowercase()),
        _ => Err("write it like application/pdf or image/jpeg".to_owned()),
    }
}

/// Pages like "1-3,7": rising and without overlap, as IPP wants them.
pub fn page_ranges(text: &str) -> Result<String, String> {
    let help = || "write pages like 1-3,7 in rising order".to_owned();
    if text.len() > WORD_MAX {
        return Err(help());
    }
    let number = |t: &str| t.trim().parse::<u32>().ok().filter(|n| *n > 0).ok_or_else(help);
    let mut last = 0;
    let mut parts = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (number(from)?, number(to)?);
        if from <= last || to < from {
            return Err(help());
        }
        last = to;
        parts.push(if from == to { from.to_string() } else { format!("{from}-{to}") });
    }
    Ok(parts.join(","))
}

/// An address to listen on; NBD's own port if none is named.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    let alone = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 10809));
    text.parse::<SocketAddr>().or_else(|_| alone()).map_err(|_| "write it like 0.0.0.0:10809, or [::]:10809".to_owned())
}

/// The id of a lease.
pub fn lease_id(text: &str) -> Result<uuid::Uuid, String> {
    text.parse().map_err(|_| "write the id as `atrium devices DEVICE` shows it".to_owned())
}

/// A number of sheets; "none" is 0, which means no limit.
pub fn sheets(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        _ => text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "write a number, or none for no limit".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_or_gets_the_usual_one() {
        for (text, address) in
            [("0.0.0.0:1", "0.0.0.0:1"), ("192.0.2.1", "192.0.2.1:10809"), ("::", "[::]:10809"), ("[::1]:0", "[::1]:0")]
        {
            assert_eq!(listen(text).unwrap().to_string(), address);
        }
        for text in ["", "anna-pc", "0.0.0.0:", "0.0.0.0:70000", "[::1]"] {
            assert!(listen(text).is_err(), "{text}");
        }
    }

    #[test]
    fn devices_of_this_machine_are_told_from_folders() {
        let of = |text: &str| OwnDevice::of(text).map(|d| (d.kind, d.to_string()));
        assert_eq!(of("printers/laser"), Some((DeviceKind::Printer, "printers/laser".to_owned())));
        assert_eq!(of("drives/dvd/"), Some((DeviceKind::Drive, "drives/dvd".to_owned())));
        assert_eq!(of("disks/big"), Some((DeviceKind::Disk, "disks/big".to_owned())));
        for other in
            ["printers", "printers/", "./printers/laser", "/printers/laser", "printers/a/b", "drives/..", "x/y"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn outputs() {
        let read = |text: &str| text.parse::<PrinterOutput>();
        assert_eq!(read("folder:/srv/out").unwrap(), PrinterOutput::Folder("/srv/out".into()));
        assert_eq!(read("cups:HP_1").unwrap(), PrinterOutput::Cups("HP_1".into()));
        assert_eq!(read("ipps://h:631/ipp/print").unwrap(), PrinterOutput::Uri("ipps://h:631/ipp/print".into()));
        assert_eq!(read("group:a, printers/b").unwrap(), PrinterOutput::Group(vec!["a".into(), "b".into()]));
        for bad in ["", "folder", "folder:", "ipp:x", "http://h/", "cups:a/b", "group:a,,b", "group:x/y", "ipp://"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn certificates() {
        let read = |text: &str| text.parse::<PrinterTrust>();
        assert_eq!(read("new").unwrap(), PrinterTrust::Word("new".into()));
        assert_eq!(read("sha256:00ff").unwrap(), PrinterTrust::Word("sha256:00ff".into()));
        assert_eq!(read("./new").unwrap(), PrinterTrust::File("./new".into()));
        assert!(read("").is_err());
    }

    #[test]
    fn jobs_are_named_as_they_are_listed() {
        let job: JobRef = "acme/anna-pc/printers/la#ser#12".parse().unwrap();
        assert_eq!((job.printer.as_str(), job.number), ("acme/anna-pc/printers/la#ser", 12));
        assert_eq!("laser#7".parse::<JobRef>().unwrap().to_string(), "laser#7");
        for bad in ["12", "laser", "laser#", "#12", "laser#x", "laser#0", "laser#+1", "laser#99999999999999999999"] {
            assert!(bad.parse::<JobRef>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paper_pages_and_types() {
        assert_eq!(media("A4").unwrap(), "iso_a4_210x297mm");
        assert_eq!(media("letter").unwrap(), "na_letter_8.5x11in");
        assert_eq!(media("custom_x_1x2mm").unwrap(), "custom_x_1x2mm");
        assert!(media("b9").is_err() && media("a_b c").is_err());
        assert_eq!(page_ranges("1-3, 7").unwrap(), "1-3,7");
        for bad in ["", "0", "3-1", "1,1", "5,2", "a", "1-", "1--2"] {
            assert!(page_ranges(bad).is_err(), "{bad}");
        }
        assert_eq!(media_type("Application/PDF").unwrap(), "application/pdf");
        assert!(media_type("pdf").is_err() && media_type("a/b/c").is_err() && media_type("a/").is_err());
        assert_eq!((sheets("none").unwrap(), sheets("20").unwrap()), (0, 20));
        assert!(sheets("0").is_err() && sheets("-1").is_err());
        assert_eq!("none".parse::<DiscImage>().unwrap(), DiscImage(None));
    }
}
