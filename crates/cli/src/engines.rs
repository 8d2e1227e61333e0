//! `doppel engines`.

use std::io::Write;

/// Prints what this host can run.
pub(crate) fn print() -> anyhow::Result<u8> {
    let mut out = std::io::stdout();
    writeln!(out, "ENGINE       STATE  WHY")?;
    writeln!(
        out,
        "interpreter  ready  x86 in software; needs nothing of the host"
    )?;
    writeln!(
        out,
        "auto takes   interpreter, the only one in this version"
    )?;
    Ok(crate::status::OK)
}
