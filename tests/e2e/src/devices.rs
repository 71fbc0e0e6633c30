//! Devices for demonstrations and tests: a PDF, a disc image, and programs that are not ours, where they are installed.

use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Finds a program in the path and where Debian keeps those of administrators.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|d| d.join(name)).find(|p| p.is_file())
}

/// A PDF of so many pages, with a line of text on each.
pub fn pdf(pages: usize) -> Vec<u8> {
    let mut objects = vec!["<< /Type /Catalog /Pages 2 0 R >>".to_owned()];
    let kids: Vec<String> = (0..pages).map(|n| format!("{} 0 R", 4 + 2 * n)).collect();
    objects.push(format!("<< /Type /Pages /Kids [{}] /Count {pages} >>", kids.join(" ")));
    objects.push("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned());
    for page in 1..=pages {
        let content = objects.len() + 2;
        objects.push(format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> /Contents {content} 0 R >>"
        ));
        let text = format!("BT /F1 24 Tf 72 720 Td (Page {page} of {pages}, printed through Atrium) Tj ET");
        objects.push(format!("<< /Length {} >>\nstream\n{text}\nendstream", text.len()));
    }
    let mut out = String::from("%PDF-1.4\n");
    let mut offsets = Vec::new();
    for (at, object) in objects.iter().enumerate() {
        offsets.push(out.len());
        let _ = write!(out, "{} 0 obj\n{object}\nendobj\n", at + 1);
    }
    let start = out.len();
    let _ = write!(out, "xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for offset in offsets {
        let _ = writeln!(out, "{offset:010} 00000 n ");
    }
    let _ = write!(out, "trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n", objects.len() + 1);
    out.into_bytes()
}

/// Makes an image of a folder with Rock Ridge and Joliet, by whichever program is installed; false if none is.
///
/// # Errors
/// The program failed.
pub fn iso(folder: &Path, image: &Path, title: &str) -> Result<bool> {
    let mut command = if let Some(xorriso) = program("xorriso") {
        let mut command = Command::new(xorriso);
        command.args(["-as", "mkisofs"]);
        command
    } else if let Some(genisoimage) = program("genisoimage") {
        Command::new(genisoimage)
    } else {
        return Ok(false);
    };
    command.args(["-quiet", "-R", "-J", "-V", title, "-o"]).arg(image).arg(folder);
    let output = command.stdin(Stdio::null()).output().context("making an image")?;
    ensure!(output.status.success(), "the image could not be made: {}", String::from_utf8_lossy(&output.stderr));
    Ok(true)
}
