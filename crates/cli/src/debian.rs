//! `doppel run debian`: the guest, and the session in it.

use crate::args::RunArgs;
use crate::ending::{Ending, Stderr};
use crate::progress::Bar;
use crate::{payload, terminal};
use anyhow::{Result, bail};
use image::{
    Command, Control, ControlReader, Freshness, GuestSpec, Input, KernelChoice, Options, Session,
    Streams,
};
use machine::{ConsoleInput, Payload};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Modules that every session wants: the machine's virtio devices.
const MODULES: [&str; 0] = [];

/// What is to run in the guest.
pub(crate) fn session(args: &RunArgs) -> Session {
    if args.words.is_empty() {
        return Session::Shell(terminal::describe());
    }
    let streams = if terminal::is_interactive() {
        Streams::Terminal(terminal::describe())
    } else {
        Streams::Pipes(Input::Stream)
    };
    let words = args.words.clone();
    Session::Command(Command {
        words,
        environment: Vec::new(),
        streams,
    })
}

/// Makes the guest, if need be, and what it starts with.
pub(crate) fn payload(args: &RunArgs, guest: &str, session: &Session) -> Result<Payload> {
    if guest != "debian" {
        bail!("there is no guest '{guest}'; there is debian, or give --kernel");
    }
    let kernel = match &args.kernel_series {
        Some(series) => KernelChoice::Series(series.clone()),
        None => KernelChoice::Default,
    };
    let freshness = if args.refresh {
        Freshness::Now
    } else {
        Freshness::Daily
    };
    let options = Options {
        freshness,
        ..Options::default()
    };
    let guest = image::debian(&GuestSpec { kernel }, &options, &mut Bar::new())?;
    let mut command_line = session.kernel_parameters().to_owned();
    if let Some(words) = &args.cmdline {
        command_line += " ";
        command_line += words;
    }
    Ok(Payload {
        kernel: payload::open(&guest.kernel, "kernel")?,
        initrd: vec![
            payload::open(&guest.initrd, "initrd")?,
            Arc::new(session.overlay(&MODULES)?),
        ],
        command_line,
    })
}

/// What the guest said on the control port.
#[derive(Default)]
pub(crate) struct Reported {
    ready: Mutex<bool>,
    became_ready: Condvar,
    ended: AtomicBool,
    status: AtomicU8,
}

impl Reported {
    /// The command's exit status, once it has ended.
    pub(crate) fn status(&self) -> Option<u8> {
        self.ended
            .load(Ordering::Acquire)
            .then(|| self.status.load(Ordering::Acquire))
    }

    /// Waits until the session's ports take input.
    fn wait_ready(&self) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ready {
            ready = self
                .became_ready
                .wait(ready)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The guest's control port, as an output of the machine.
pub(crate) struct ControlPort {
    reader: ControlReader,
    reported: Arc<Reported>,
}

impl ControlPort {
    pub(crate) fn new(reported: Arc<Reported>) -> Self {
        Self {
            reader: ControlReader::default(),
            reported,
        }
    }
}

impl Write for ControlPort {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for byte in bytes {
            match self.reader.push(*byte) {
                Some(Control::Ready) => {
                    let ready = &self.reported.ready;
                    *ready.lock().unwrap_or_else(PoisonError::into_inner) = true;
                    self.reported.became_ready.notify_all();
                }
                Some(Control::Exit(status)) => {
                    self.reported.status.store(status, Ordering::Release);
                    self.reported.ended.store(true, Ordering::Release);
                }
                None => {}
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Outputs of COM1 to COM4 for `session`; `log` takes the kernel's messages.
pub(crate) fn outputs(
    session: &Session,
    reported: &Arc<Reported>,
    console: Option<Box<dyn Write + Send>>,
    log: &crate::console::Log,
    ending: &Ending,
    verbose: bool,
) -> [Option<Box<dyn Write + Send>>; 4] {
    let control: Box<dyn Write + Send> = Box::new(ControlPort::new(reported.clone()));
    match session {
        Session::Shell(_) => [Some(log.tee(console)), None, None, Some(control)],
        Session::Command(_) => {
            let messages: Option<Box<dyn Write + Send>> = if verbose {
                Some(Box::new(Stderr(ending.clone())))
            } else {
                None
            };
            let errors: Box<dyn Write + Send> = Box::new(Stderr(ending.clone()));
            [
                Some(log.tee(messages)),
                console,
                Some(errors),
                Some(control),
            ]
        }
    }
}

/// Brings standard input to a command that has no terminal, once it is there to read it.
pub(crate) fn feed_pipe(reported: Arc<Reported>, input: ConsoleInput) {
    let name = "stdin".to_owned();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        use std::io::Read;
        reported.wait_ready();
        let mut encoder = image::StdinEncoder::default();
        let mut buffer = [0; 4096];
        loop {
            match std::io::stdin().read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(len) => {
                    if !input.send(&encoder.encode(&buffer[..len])) {
                        return;
                    }
                }
            }
        }
        input.send(&encoder.finish());
    });
    drop(thread);
}

/// Tells the guest the terminal's new size.
pub(crate) fn resize(input: &ConsoleInput) {
    if let Some(size) = terminal::size() {
        let line = image::resize_line(size);
        let input = input.clone();
        // The guest may take its time.
        drop(std::thread::Builder::new().spawn(move || input.send(line.as_bytes())));
    }
}
