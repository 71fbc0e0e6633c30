//! Attributes of printers.

use bytes::Bytes;

use super::http::Context;
use super::operations::SUPPORTED;
use super::request::NUMBER_UP;
use super::subscriptions;
use crate::ipp::codes::group;
use crate::ipp::value::{Attribute, DateTime, Group, Value};
use crate::printer::model::Capabilities;
use crate::printer::printers::{PrinterState, PrinterView};
use crate::printer::queue::DOCUMENT_WAIT_MS;

/// Margins of all sizes, in hundredths of a millimetre.
const MARGIN: i32 = 423;

/// URIs of a printer and its jobs, as the client can reach them.
pub(super) struct Uris<'a> {
    context: &'a Context,
    name: &'a str,
}

impl<'a> Uris<'a> {
    pub(super) fn new(context: &'a Context, name: &'a str) -> Self {
        Self { context, name }
    }

    /// The host as the client wrote it, without a port.
    fn host(&self) -> &str {
        let authority = self.context.authority.as_str();
        match authority.rfind(':') {
            Some(at) if !authority[at..].contains(']') => &authority[..at],
            _ => authority,
        }
    }

    fn path(&self) -> String {
        if self.context.only.is_some() { "/ipp/print".into() } else { format!("/ipp/print/{}", self.name) }
    }

    /// The printer, by the protocol of this connection.
    pub(super) fn printer(&self) -> String {
        let scheme = if self.context.peer.tls { "ipps" } else { "ipp" };
        format!("{scheme}://{}{}", self.context.authority, self.path())
    }

    /// A job, by the protocol of this connection.
    pub(super) fn job(&self, id: u32) -> String {
        let scheme = if self.context.peer.tls { "ipps" } else { "ipp" };
        format!("{scheme}://{}/jobs/{id}", self.context.authority)
    }

    /// A page or icon.
    pub(super) fn web(&self, path: &str) -> String {
        let scheme = if self.context.peer.tls { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.context.authority)
    }

    /// All URIs of the printer with the protection that each has.
    fn all(&self) -> Vec<(String, &'static str)> {
        use std::sync::atomic::Ordering::Relaxed;
        let shared = &self.context.shared;
        let one = |scheme: &str, port: u16| format!("{scheme}://{}:{port}{}", self.host(), self.path());
        let mut all = Vec::new();
        match shared.port.load(Relaxed) {
            0 => {}
            port => all.push((one("ipp", port), "none")),
        }
        match shared.tls_port.load(Relaxed) {
            0 => {}
            port => all.push((one("ipps", port), "tls")),
        }
        if all.is_empty() {
            all.push((self.printer(), if self.context.peer.tls { "tls" } else { "none" }));
        }
        all
    }
}

/// Width and length of a size in hundredths of a millimetre, from its name (PWG 5101.1 section 5).
pub(crate) fn media_size(name: &str) -> Option<(i32, i32)> {
    let dimensions = name.rsplit('_').next()?;
    let (text, unit) = if let Some(text) = dimensions.strip_suffix("mm") {
        (text, 100.0)
    } else {
        (dimensions.strip_suffix("in")?, 2540.0)
    };
    let (x, y) = text.split_once('x')?;
    let side =
        |s: &str| s.parse::<f64>().ok().filter(|n| (1.0..10_000.0).contains(n)).map(|n| (n * unit).round() as i32);
    Some((side(x)?, side(y)?))
}

fn size_collection(name: &str) -> Value {
    let (x, y) = media_size(name).unwrap_or((21_000, 29_700));
    Value::Collection(vec![
        Attribute::one("x-dimension", Value::Integer(x)),
        Attribute::one("y-dimension", Value::Integer(y)),
    ])
}

fn media_collection(name: &str) -> Value {
    let margin = |side: &str| Attribute::one(format!("media-{side}-margin"), Value::Integer(MARGIN));
    Value::Collection(vec![
        Attribute::one("media-size-name", Value::keyword(name)),
        Attribute::one("media-size", size_collection(name)),
        margin("top"),
        margin("bottom"),
        margin("left"),
        margin("right"),
        Attribute::one("media-source", Value::keyword("auto")),
        Attribute::one("media-type", Value::keyword("stationery")),
    ])
}

fn keywords(list: &[&str]) -> Vec<Value> {
    list.iter().map(|k| Value::keyword(*k)).collect()
}

fn dpi(n: u32) -> Value {
    Value::Resolution { x: n as i32, y: n as i32, unit: 3 }
}

/// Seconds since 1970: the up-time of a printer counts from there, so that times of jobs stay true over restarts.
pub(super) fn seconds(ms: u64) -> i32 {
    i32::try_from(ms / 1000).unwrap_or(i32::MAX)
}

/// Name in the device id of IEEE 1284: no ';' and ':'.
fn device_id(view: &PrinterView) -> String {
    let model: String =
        view.config.name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | ' ')).collect();
    format!("MFG:Atrium;MDL:{model};CMD:PDF,JPEG,PWGRaster,AppleRaster;")
}

/// Whose printers these are, in `make and model`.
const MAKE: &str = "Atrium";

/// What `make and model` says, here and in DNS-SD.
pub(crate) fn make_and_model(name: &str) -> String {
    format!("{MAKE} {name}")
}

/// Whether a `make and model` is of a printer of this kind.
pub(crate) fn is_ours(make_and_model: &str) -> bool {
    make_and_model.strip_prefix(MAKE).is_some_and(|rest| rest.starts_with(' '))
}

/// `urf-supported`, here and in DNS-SD.
pub(crate) fn urf(can: &Capabilities) -> Vec<String> {
    let mut list: Vec<String> = ["V1.4", "CP1", "W8"].map(str::to_owned).to_vec();
    if can.color {
        list.push("SRGB24".into());
    }
    let resolutions: Vec<String> = can.resolutions.iter().map(u32::to_string).collect();
    list.push(format!("RS{}", if resolutions.is_empty() { "300".into() } else { resolutions.join("-") }));
    if can.duplex {
        list.push("DM1".into());
    }
    list
}

/// All attributes of a printer, with whether each belongs to the job template.
pub(super) fn printer(context: &Context, view: &PrinterView) -> Vec<(Attribute, bool)> {
    let mut description = Group::new(group::PRINTER);
    identity(context, view, &mut description);
    state(context, view, &mut description);
    protocol(view, &mut description);
    let mut template = Group::new(group::PRINTER);
    job_template(&view.config.capabilities(), &mut template);
    let described = description.attributes.into_iter().map(|a| (a, false));
    described.chain(template.attributes.into_iter().map(|a| (a, true))).collect()
}

fn identity(context: &Context, view: &PrinterView, out: &mut Group) {
    let config = &view.config;
    let uris = Uris::new(context, &config.name);
    out.put("printer-name", Value::name(&config.name));
    out.put("printer-uuid", Value::uri(format!("urn:uuid:{}", config.uuid)));
    out.put("printer-info", Value::text(&config.info));
    out.put("printer-location", Value::text(&config.location));
    let geo = config.geo.as_deref().filter(|g| g.starts_with("geo:"));
    out.put("printer-geo-location", geo.map_or(Value::Unknown, Value::uri));
    out.put("printer-organization", Value::text(&config.organization));
    out.put("printer-organizational-unit", Value::text(""));
    out.put("printer-make-and-model", Value::text(make_and_model(&config.name)));
    out.put("printer-device-id", Value::text(device_id(view)));
    out.put("printer-dns-sd-name", Value::name(crate::printer::dnssd::instance(config)));
    out.put("printer-kind", Value::keyword("document"));
    out.put("printer-more-info", Value::uri(uris.web("/")));
    out.put("printer-supply-info-uri", Value::uri(uris.web("/")));
    out.put_all("printer-icons", [48, 128, 512].map(|n| Value::uri(uris.web(&format!("/icons/printer-{n}.png")))));
    let all = uris.all();
    out.put_all("printer-uri-supported", all.iter().map(|(uri, _)| Value::uri(uri)));
    out.put_all("uri-security-supported", all.iter().map(|(_, s)| Value::keyword(*s)));
    out.put_all("uri-authentication-supported", all.iter().map(|_| Value::keyword("requesting-user-name")));
}

fn state(context: &Context, view: &PrinterView, out: &mut Group) {
    let now = context.shared.printers.now_ms();
    out.put("printer-state", Value::Enum(view.state.code()));
    out.put_all("printer-state-reasons", view.reasons.iter().map(Value::keyword));
    let message = match view.state {
        PrinterState::Stopped => view.reasons.join(", "),
        other => other.word().to_owned(),
    };
    out.put("printer-state-message", Value::text(message));
    out.put("printer-is-accepting-jobs", Value::Boolean(view.switches.accepting));
    out.put("queued-job-count", Value::Integer(view.jobs as i32));
    out.put("printer-up-time", Value::Integer(seconds(now).max(1)));
    out.put("printer-current-time", Value::DateTime(DateTime::of_unix_ms(now)));
    let changed = view.switches.changed_ms.max(view.started_ms);
    out.put("printer-state-change-time", Value::Integer(seconds(changed)));
    out.put("printer-state-change-date-time", Value::DateTime(DateTime::of_unix_ms(changed)));
    out.put("printer-config-change-time", Value::Integer(seconds(view.configured_ms)));
    out.put("printer-config-change-date-time", Value::DateTime(DateTime::of_unix_ms(view.configured_ms)));
    out.put("printer-message-from-operator", Value::text(""));
    // One alert a reason (PWG 5100.9): what is not known is not said.
    let alert =
        |reason: &String| Value::OctetString(Bytes::from(format!("code={};severity=other", alert_code(reason))));
    out.put_all("printer-alert", view.reasons.iter().map(alert));
    out.put_all("printer-alert-description", view.reasons.iter().map(Value::text));
    // Nothing is known about supplies: level -2.
    let supply = "type=other;maxcapacity=-2;level=-2;class=other;unit=other;colorantname=unknown;";
    out.put("printer-supply", Value::OctetString(Bytes::from_static(supply.as_bytes())));
    out.put("printer-supply-description", Value::text("Supplies (level unknown)"));
}

fn alert_code(reason: &str) -> &'static str {
    match reason {
        "media-empty-error" | "media-empty" => "inputMediaSupplyEmpty",
        "media-jam-error" | "media-jam" => "jam",
        "shutdown" => "powerDown",
        _ => "other",
    }
}

fn protocol(view: &PrinterView, out: &mut Group) {
    let can = view.config.capabilities();
    let limits = &view.config.limits;
    let most_k = i32::try_from(limits.job_bytes / 1024).unwrap_or(i32::MAX);
    out.put("charset-configured", Value::Charset("utf-8".into()));
    out.put_all("charset-supported", ["utf-8", "us-ascii"].map(|c| Value::Charset(c.into())));
    out.put("natural-language-configured", Value::Language("en".into()));
    out.put("generated-natural-language-supported", Value::Language("en".into()));
    out.put_all("compression-supported", keywords(&["none", "gzip", "deflate"]));
    out.put("document-format-default", Value::MimeType("application/octet-stream".into()));
    let formats = can.formats.iter().cloned().chain(["application/octet-stream".to_owned()]);
    out.put_all("document-format-supported", formats.map(Value::MimeType));
    if let Some(first) = can.formats.first() {
        out.put("document-format-preferred", Value::MimeType(first.clone()));
    }
    out.put_all("ipp-versions-supported", keywords(&["1.0", "1.1", "2.0", "2.1", "2.2"]));
    out.put_all("ipp-features-supported", keywords(&["ipp-everywhere"]));
    out.put_all("operations-supported", SUPPORTED.iter().map(|o| Value::Enum(i32::from(o.code()))));
    out.put("identify-actions-default", Value::keyword("display"));
    out.put_all("identify-actions-supported", keywords(&["display"]));
    out.put("color-supported", Value::Boolean(can.color));
    let pages = i32::try_from(can.pages_per_minute).unwrap_or(i32::MAX);
    out.put("pages-per-minute", Value::Integer(pages));
    if can.color {
        out.put("pages-per-minute-color", Value::Integer(pages));
    }
    out.put("pdl-override-supported", Value::keyword("attempted"));
    out.put("preferred-attributes-supported", Value::Boolean(false));
    out.put("job-ids-supported", Value::Boolean(true));
    out.put("job-impressions-supported", Value::Range(0, i32::MAX));
    out.put("job-media-sheets-supported", Value::Range(0, i32::MAX));
    out.put("job-k-octets-supported", Value::Range(0, most_k));
    out.put("job-password-supported", Value::Integer(32));
    out.put("job-password-length-supported", Value::Range(1, 32));
    out.put("job-password-encryption-supported", Value::keyword("none"));
    let settable = ["copies", "job-hold-until", "job-name", "job-priority"];
    out.put_all("job-settable-attributes-supported", keywords(&settable));
    out.put("printer-settable-attributes-supported", Value::keyword("none"));
    let creation = [
        "copies",
        "finishings",
        "job-hold-until",
        "job-hold-until-time",
        "job-name",
        "job-password",
        "job-password-encryption",
        "job-priority",
        "job-sheets",
        "media",
        "media-col",
        "multiple-document-handling",
        "number-up",
        "orientation-requested",
        "output-bin",
        "page-ranges",
        "print-color-mode",
        "print-content-optimize",
        "print-quality",
        "print-rendering-intent",
        "print-scaling",
        "printer-resolution",
        "sides",
    ];
    out.put_all("job-creation-attributes-supported", keywords(&creation));
    out.put("multiple-document-jobs-supported", Value::Boolean(true));
    out.put("multiple-operation-time-out", Value::Integer((DOCUMENT_WAIT_MS / 1000) as i32));
    out.put("multiple-operation-time-out-action", Value::keyword("abort-job"));
    out.put_all("printer-get-attributes-supported", keywords(&["document-format"]));
    out.put_all("pwg-raster-document-resolution-supported", can.resolutions.iter().map(|r| dpi(*r)));
    out.put("pwg-raster-document-sheet-back", Value::keyword("normal"));
    let kinds: &[&str] = if can.color { &["black_1", "sgray_8", "srgb_8"] } else { &["black_1", "sgray_8"] };
    out.put_all("pwg-raster-document-type-supported", keywords(kinds));
    out.put_all("urf-supported", urf(&can).into_iter().map(Value::Keyword));
    let which = [
        "completed",
        "not-completed",
        "aborted",
        "all",
        "canceled",
        "pending",
        "pending-held",
        "processing",
        "processing-stopped",
        "proof-print",
    ];
    out.put_all("which-jobs-supported", keywords(&which));
    subscriptions::describe(out);
}

fn job_template(can: &Capabilities, out: &mut Group) {
    let media: Vec<&str> = can.media.iter().map(String::as_str).collect();
    let first = media.first().copied().unwrap_or("iso_a4_210x297mm");
    let pair = |out: &mut Group, name: &str, default: Value, supported: Vec<Value>| {
        out.put(&format!("{name}-default"), default);
        out.put_all(&format!("{name}-supported"), supported);
    };
    let words = |out: &mut Group, name: &str, list: &[&str]| pair(out, name, Value::keyword(list[0]), keywords(list));
    pair(out, "copies", Value::Integer(1), vec![Value::Range(1, 999)]);
    pair(out, "finishings", Value::Enum(3), vec![Value::Enum(3)]);
    words(out, "job-hold-until", &["no-hold", "indefinite"]);
    out.put("job-hold-until-time-supported", Value::Range(0, i32::MAX));
    pair(out, "job-priority", Value::Integer(50), vec![Value::Integer(100)]);
    words(out, "job-sheets", &["none"]);
    pair(out, "media", Value::keyword(first), keywords(&media));
    out.put_all("media-ready", keywords(&media));
    out.put("media-col-default", media_collection(first));
    out.put_all("media-col-ready", media.iter().map(|m| media_collection(m)));
    out.put_all("media-col-database", media.iter().map(|m| media_collection(m)));
    let members = [
        "media-bottom-margin",
        "media-left-margin",
        "media-right-margin",
        "media-size",
        "media-size-name",
        "media-source",
        "media-top-margin",
        "media-type",
    ];
    out.put_all("media-col-supported", keywords(&members));
    for side in ["bottom", "left", "right", "top"] {
        out.put(&format!("media-{side}-margin-supported"), Value::Integer(MARGIN));
    }
    out.put_all("media-size-supported", media.iter().map(|m| size_collection(m)));
    out.put_all("media-source-supported", keywords(&["auto"]));
    out.put_all("media-type-supported", keywords(&["stationery"]));
    words(out, "multiple-document-handling", &["separate-documents-collated-copies"]);
    pair(out, "number-up", Value::Integer(1), NUMBER_UP.map(Value::Integer).to_vec());
    pair(out, "orientation-requested", Value::Enum(3), (3..=6).map(Value::Enum).collect());
    words(out, "output-bin", &["face-down"]);
    // The two names are those of PWG 5100.6 and of the test suites; both ask for the same.
    out.put_all("overrides-supported", keywords(&["document-number", "document-numbers", "pages"]));
    out.put("page-ranges-supported", Value::Boolean(true));
    let colors: &[&str] = if can.color { &["auto", "color", "monochrome"] } else { &["auto", "monochrome"] };
    words(out, "print-color-mode", colors);
    words(out, "print-content-optimize", &["auto"]);
    pair(out, "print-quality", Value::Enum(4), (3..=5).map(Value::Enum).collect());
    words(out, "print-rendering-intent", &["auto"]);
    words(out, "print-scaling", &["auto"]);
    let resolution = can.resolutions.first().copied().unwrap_or(300);
    pair(out, "printer-resolution", dpi(resolution), can.resolutions.iter().map(|r| dpi(*r)).collect());
    let sides: &[&str] =
        if can.duplex { &["one-sided", "two-sided-long-edge", "two-sided-short-edge"] } else { &["one-sided"] };
    words(out, "sides", sides);
}

/// Those that were asked for. `media-col-database` is long and only given by name.
pub(super) fn chosen(all: Vec<(Attribute, bool)>, requested: Option<&[&str]>) -> Vec<Attribute> {
    let wanted = |name: &str, template: bool| match requested {
        None => name != "media-col-database",
        Some(names) => names.iter().any(|asked| match *asked {
            "all" => name != "media-col-database",
            "job-template" => template && name != "media-col-database",
            "printer-description" => !template,
            asked => asked == name,
        }),
    };
    all.into_iter().filter(|(a, template)| wanted(&a.name, *template)).map(|(a, _)| a).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_from_names() {
        assert_eq!(media_size("iso_a4_210x297mm"), Some((21_000, 29_700)));
        assert_eq!(media_size("na_letter_8.5x11in"), Some((21_590, 27_940)));
        for bad in ["", "a4", "iso_a4_210mm", "x_x_0x0mm", "a_b_1e99x1in", "na_x_-1x2in"] {
            assert_eq!(media_size(bad), None, "{bad}");
        }
    }
}
