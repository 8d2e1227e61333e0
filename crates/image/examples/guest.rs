//! Makes a guest and a session for it, to be booted by any virtual machine:
//! `guest SERIES|default OVERLAY [--terminal|--stdin] [COMMAND...]`. Writes the initrd with the
//! session appended to OVERLAY, and prints the kernel's path and its parameters.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program")]

use image::{
    Command, Event, GuestSpec, Input, KernelChoice, Options, Session, Size, Streams, Terminal,
};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let kernel = arguments
        .next()
        .ok_or("which kernel?")?
        .into_string()
        .map_err(|_| "no text")?;
    let output = arguments.next().ok_or("where to?")?;
    let kernel = match kernel.as_str() {
        "default" => KernelChoice::Default,
        _ => KernelChoice::Series(kernel),
    };
    let terminal = Terminal {
        kind: Some("xterm".into()),
        size: Some(Size {
            rows: 33,
            columns: 111,
        }),
    };
    let flag = arguments.next_if(|word| word.as_bytes().starts_with(b"--"));
    let streams = match flag.as_deref().map(OsStrExt::as_bytes) {
        Some(b"--terminal") => Streams::Terminal(terminal.clone()),
        Some(b"--stdin") => Streams::Pipes(Input::Stream),
        _ => Streams::Pipes(Input::Null),
    };
    let words: Vec<OsString> = arguments.collect();
    let session = if words.is_empty() {
        Session::Shell(terminal)
    } else {
        Session::Command(Command {
            words,
            environment: Vec::new(),
            streams,
        })
    };
    let spec = GuestSpec { kernel };
    let mut progress = |event: Event<'_>| {
        if !matches!(event, Event::Advance { .. }) {
            eprintln!("{event:?}");
        }
    };
    let guest = image::debian(&spec, &Options::default(), &mut progress)?;
    let mut initrd = std::fs::read(&guest.initrd)?;
    initrd.extend(session.overlay(&[])?);
    std::fs::write(output, initrd)?;
    println!(
        "{}\n{}",
        guest.kernel.display(),
        session.kernel_parameters()
    );
    Ok(())
}
