//! What a guest runs, and how it speaks with the monitor.
//!
//! | port | guest's name | carries |
//! |---|---|---|
//! | COM1 | `ttyS0` | the kernel's console; the terminal of [`Session::Shell`] |
//! | COM2 | `ttyS1` | a command's terminal, or its standard input and output |
//! | COM3 | `ttyS2` | a command's standard error, where it has no terminal |
//! | COM4 | `ttyS3` | control: lines of text, both ways |
//!
//! Control lines from the guest are read by [`ControlReader`]; to the guest there is one,
//! [`resize_line`]. Everything else that a session is goes in as files: [`Session::overlay`] is an
//! archive to append to the guest's initrd. Nothing passes through the kernel's command line,
//! whose length and quoting are limited.

use crate::cpio::Archive;
use crate::error::Error;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Bytes that one word of a command can have, its end included (Linux: `MAX_ARG_STRLEN`).
const WORD_BYTES_MAX: usize = 128 * 1024;
/// Bytes that a command's words and environment can have together. Linux takes a quarter of the
/// stack's limit of 8 MiB, pointers included; half of that leaves room for them.
const COMMAND_BYTES_MAX: usize = 1024 * 1024;

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// The host's terminal, which the guest's one is to be like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terminal {
    /// The value of `TERM`; `vt102` if there is none.
    pub kind: Option<OsString>,
    /// Its size, if known.
    pub size: Option<Size>,
}

/// Where a command without a terminal reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// `/dev/null`.
    Null,
    /// COM2, where the monitor sends what [`StdinEncoder`] makes of the host's standard input.
    Stream,
}

/// What a command's standard streams are in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Streams {
    /// A terminal on COM2, for all three.
    Terminal(Terminal),
    /// Pipes: input from where it says, output to COM2, errors to COM3, byte for byte.
    Pipes(Input),
}

/// A command to run in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program, looked up in `PATH`, and its arguments. Any bytes but NUL.
    pub words: Vec<OsString>,
    /// Environment variables beyond `PATH`, `HOME` and `TERM`. Names are those a shell can have.
    pub environment: Vec<(String, OsString)>,
    /// Its standard streams.
    pub streams: Streams,
}

/// What a guest runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Session {
    /// A root login shell on COM1.
    Shell(Terminal),
    /// One command, with whose end the guest ends.
    Command(Command),
}

impl Session {
    /// The archive to append to the guest's initrd (whose length is a multiple of 4 bytes, as
    /// this one's is). `modules` are loaded before the session starts.
    ///
    /// # Errors
    /// [`Error::Argument`] if a word or a variable can't be handed to a program.
    pub fn overlay(&self, modules: &[&str]) -> Result<Vec<u8>, Error> {
        let mut archive = Archive::default();
        archive.file(".doppel/session", 0o644, &self.variables(modules)?);
        if let Session::Command(command) = self {
            archive.file(".doppel/command", 0o644, &command.script()?);
        }
        Ok(archive.finish())
    }

    /// What the kernel's command line must say for a session.
    ///
    /// After a panic the kernel resets the machine at once: a monitor that ends at a reset need
    /// not know the reason to end.
    pub fn kernel_parameters(&self) -> &'static str {
        "console=ttyS0,115200 quiet panic=-1"
    }

    /// Assignments that `/init` reads.
    fn variables(&self, modules: &[&str]) -> Result<Vec<u8>, Error> {
        let mut script = Vec::new();
        let kind = match self {
            Session::Shell(terminal) => {
                terminal.variables(&mut script)?;
                "shell"
            }
            Session::Command(Command {
                streams: Streams::Terminal(terminal),
                ..
            }) => {
                terminal.variables(&mut script)?;
                "terminal"
            }
            Session::Command(Command {
                streams: Streams::Pipes(input),
                ..
            }) => {
                let input = match input {
                    Input::Null => "null",
                    Input::Stream => "stream",
                };
                assign(&mut script, "input", input)?;
                "streams"
            }
        };
        assign(&mut script, "kind", kind)?;
        assign(&mut script, "modules", modules.join(" "))?;
        Ok(script)
    }
}

impl Terminal {
    fn variables(&self, script: &mut Vec<u8>) -> Result<(), Error> {
        if let Some(kind) = self.kind.as_ref().filter(|kind| !kind.is_empty()) {
            assign(script, "term", kind)?;
        }
        if let Some(Size { rows, columns }) = self.size {
            assign(script, "rows", rows.to_string())?;
            assign(script, "columns", columns.to_string())?;
        }
        Ok(())
    }
}

impl Command {
    /// A script that becomes the command. Each word is quoted whole, so that nothing in it is
    /// read as shell.
    fn script(&self) -> Result<Vec<u8>, Error> {
        let Some(program) = self.words.first() else {
            return Err(Error::Argument("no command was given".to_owned()));
        };
        if program.is_empty() {
            return Err(Error::Argument("the command's name is empty".to_owned()));
        }
        let mut script = Vec::new();
        for (name, value) in &self.environment {
            if !is_variable_name(name) {
                return Err(Error::Argument(format!(
                    "{name:?} is no name for an environment variable: letters, digits and _"
                )));
            }
            script.extend_from_slice(b"export ");
            assign(&mut script, name, value)?;
        }
        script.extend_from_slice(b"exec --");
        for word in &self.words {
            script.push(b' ');
            quote(&mut script, word)?;
        }
        script.push(b'\n');
        if script.len() > COMMAND_BYTES_MAX {
            return Err(Error::Argument(format!(
                "the command is too long: its words have more than {COMMAND_BYTES_MAX} bytes"
            )));
        }
        Ok(script)
    }
}

fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn assign(script: &mut Vec<u8>, name: &str, value: impl AsRef<OsStr>) -> Result<(), Error> {
    script.extend_from_slice(name.as_bytes());
    script.push(b'=');
    quote(script, value.as_ref())?;
    script.push(b'\n');
    Ok(())
}

/// Between single quotes a POSIX shell takes every character for itself but the quote (XCU 2.2.2),
/// which stands outside, behind a backslash.
fn quote(script: &mut Vec<u8>, word: &OsStr) -> Result<(), Error> {
    let word = word.as_bytes();
    if word.contains(&0) {
        return Err(Error::Argument(
            "a word of the command holds a NUL".to_owned(),
        ));
    }
    if word.len() >= WORD_BYTES_MAX {
        return Err(Error::Argument(format!(
            "a word of the command is too long: Linux takes up to {} bytes",
            WORD_BYTES_MAX - 1
        )));
    }
    script.push(b'\'');
    for &byte in word {
        match byte {
            b'\'' => script.extend_from_slice(b"'\\''"),
            _ => script.push(byte),
        }
    }
    script.push(b'\'');
    Ok(())
}

/// The control line that tells the guest the terminal's new size.
pub fn resize_line(size: Size) -> String {
    format!("size {} {}\n", size.rows, size.columns)
}

/// What a guest says on the control port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// The session's ports are open and set up: input may be sent from now on.
    Ready,
    /// The session ended with this status; 128 + N if signal N ended it. All its output has left
    /// the guest, which is about to power off.
    Exit(u8),
}

/// Reads the control port. Lines that mean nothing are ignored, whatever is in them.
#[derive(Debug, Default)]
pub struct ControlReader {
    line: [u8; Self::LINE_BYTES_MAX],
    /// Bytes of the line so far; more than fit if it is too long to mean anything.
    length: usize,
}

impl ControlReader {
    const LINE_BYTES_MAX: usize = 16;

    /// Takes the next byte, which may complete a line.
    pub fn push(&mut self, byte: u8) -> Option<Control> {
        if byte == b'\n' {
            let control = self.line.get(..self.length).and_then(parse_control);
            self.length = 0;
            return control;
        }
        if let Some(slot) = self.line.get_mut(self.length) {
            *slot = byte;
        }
        self.length = self.length.saturating_add(1);
        None
    }
}

fn parse_control(line: &[u8]) -> Option<Control> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let control = match words.next()? {
        "ready" => Control::Ready,
        "exit" => Control::Exit(words.next()?.parse().ok()?),
        _ => return None,
    };
    words.next().is_none().then_some(control)
}

/// Encodes the host's standard input for a serial line in canonical mode, where it arrives byte
/// for byte, and its end as an end.
///
/// Source: POSIX.1-2017 XBD 11.1.6 and 11.1.9 (EOF hands over what there is; with nothing there,
/// reads return 0), and `VLNEXT` of Linux's termios(3), which takes the next character literally.
/// A line of such a terminal holds at most 4095 bytes, so longer ones are handed over in pieces.
#[derive(Debug, Default)]
pub struct StdinEncoder {
    /// Bytes since the last newline or hand-over.
    pending: usize,
}

impl StdinEncoder {
    /// Hands the line over.
    const END: u8 = 0x04;
    /// Takes the next byte literally.
    const NEXT: u8 = 0x16;
    /// Bytes after which a line is handed over though it has not ended.
    const PIECE_BYTES: usize = 1000;

    /// What to send for `input`.
    pub fn encode(&mut self, input: &[u8]) -> Vec<u8> {
        let mut line = Vec::with_capacity(input.len() + input.len() / 64);
        for &byte in input {
            // Before the next byte, not after this one: a line that ends here needs no hand-over.
            if self.pending == Self::PIECE_BYTES {
                line.push(Self::END);
                self.pending = 0;
            }
            match byte {
                b'\n' => self.pending = 0,
                Self::END | Self::NEXT => {
                    line.push(Self::NEXT);
                    self.pending += 1;
                }
                _ => self.pending += 1,
            }
            line.push(byte);
        }
        if self.pending > 0 {
            line.push(Self::END);
            self.pending = 0;
        }
        line
    }

    /// What to send at the end of the input.
    pub fn finish(self) -> [u8; 1] {
        [Self::END]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::parse;
    use std::os::unix::ffi::OsStringExt;

    fn command(words: &[&[u8]]) -> Command {
        Command {
            words: words
                .iter()
                .map(|w| OsString::from_vec(w.to_vec()))
                .collect(),
            environment: Vec::new(),
            streams: Streams::Pipes(Input::Null),
        }
    }

    /// Runs the script with the host's shell and gives the output's bytes.
    fn run(command: &Command) -> Vec<u8> {
        let mut shell = std::process::Command::new("sh");
        // `dash` takes no `--` after `exec`; the guest's shell does.
        let script = command.script().unwrap();
        let at = script.windows(7).rposition(|w| w == b"exec --").unwrap();
        let script = [&script[..at], b"exec", &script[at + 7..]].concat();
        let output = shell
            .arg("-c")
            .arg(OsString::from_vec(script))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    #[test]
    fn every_byte_passes_a_shell_unchanged() {
        let every: Vec<u8> = (1..=255).collect();
        let words: [&[u8]; 7] = [
            b"printf",
            b"%s|",
            &every,
            b"",
            b"two words",
            b"'$(id)' \\",
            b"\n`id`\n",
        ];
        let expected = [&every[..], b"||two words|'$(id)' \\|\n`id`\n|"].concat();
        assert_eq!(run(&command(&words)), expected);
    }

    #[test]
    fn variables_pass_a_shell_unchanged() {
        let mut command = command(&[b"printenv", b"ODD"]);
        command
            .environment
            .push(("ODD".to_owned(), OsString::from("a 'b' $c\nd")));
        assert_eq!(run(&command), b"a 'b' $c\nd\n");
    }

    #[test]
    fn what_no_program_can_be_given_is_refused() {
        let long = vec![b'x'; WORD_BYTES_MAX];
        let many = vec![b'x'; WORD_BYTES_MAX - 1];
        let refused: [Command; 5] = [
            command(&[]),
            command(&[b""]),
            command(&[b"a\0b"]),
            command(&[b"echo", &long]),
            command(&[&many[..]; 9]),
        ];
        for command in refused {
            assert!(matches!(command.script(), Err(Error::Argument(_))));
        }
        for name in ["", "1A", "A=B", "A B", "Ä"] {
            let mut command = command(&[b"true"]);
            command.environment.push((name.to_owned(), OsString::new()));
            assert!(
                matches!(command.script(), Err(Error::Argument(_))),
                "{name:?}"
            );
        }
    }

    #[test]
    fn the_overlay_holds_the_session_and_the_command() {
        let entries = parse(
            &Session::Command(command(&[b"id"]))
                .overlay(&["a", "b"])
                .unwrap(),
        );
        let paths: Vec<_> = entries.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, [".doppel/session", ".doppel/command"]);
        assert_eq!(
            entries[0].content,
            b"input='null'\nkind='streams'\nmodules='a b'\n"
        );
        assert_eq!(entries[1].content, b"exec -- 'id'\n");
    }

    #[test]
    fn a_shell_gets_the_hosts_terminal() {
        let terminal = Terminal {
            kind: Some(OsString::from("xterm-256color")),
            size: Some(Size {
                rows: 50,
                columns: 132,
            }),
        };
        let entries = parse(&Session::Shell(terminal).overlay(&[]).unwrap());
        assert_eq!(entries.len(), 1);
        assert_eq!(
            entries[0].content,
            b"term='xterm-256color'\nrows='50'\ncolumns='132'\nkind='shell'\nmodules=''\n"
        );
    }

    fn read(bytes: &[u8]) -> Vec<Control> {
        let mut reader = ControlReader::default();
        bytes.iter().filter_map(|&byte| reader.push(byte)).collect()
    }

    #[test]
    fn control_lines_are_read() {
        assert_eq!(
            read(b"ready\r\nexit 7\r\n"),
            [Control::Ready, Control::Exit(7)]
        );
        assert_eq!(read(b"exit 255\n"), [Control::Exit(255)]);
    }

    #[test]
    fn hostile_control_lines_are_ignored() {
        let long = [b"exit 1".as_slice(), &[b' '; 100_000], b"\nexit 3\n"].concat();
        assert_eq!(read(&long), [Control::Exit(3)]);
        for bytes in [
            &b"exit 256\n"[..],
            b"exit\n",
            b"exit -1\n",
            b"exit 1 2\n",
            b"\xff\xfe\n",
            b"\n",
            b"exit 1",
        ] {
            assert_eq!(read(bytes), [], "{bytes:?}");
        }
    }

    /// A terminal in canonical mode: what each read gives, the end included.
    fn reads(line: &[u8]) -> Vec<Vec<u8>> {
        let (mut reads, mut now) = (Vec::new(), Vec::new());
        let mut bytes = line.iter();
        while let Some(&byte) = bytes.next() {
            match byte {
                StdinEncoder::NEXT => now.push(*bytes.next().unwrap()),
                StdinEncoder::END => reads.push(std::mem::take(&mut now)),
                b'\n' => {
                    now.push(byte);
                    reads.push(std::mem::take(&mut now));
                }
                _ => now.push(byte),
            }
        }
        assert!(now.is_empty(), "something was not handed over");
        reads
    }

    #[test]
    fn input_arrives_byte_for_byte_and_ends_once() {
        let every: Vec<u8> = (0..=255).collect();
        let long = vec![b'x'; 10 * StdinEncoder::PIECE_BYTES];
        let exact = [&[b'x'; StdinEncoder::PIECE_BYTES][..], b"\n"].concat();
        for input in [
            &every[..],
            &long,
            &exact,
            b"",
            b"\n",
            b"no newline",
            b"a\n\nb\n",
        ] {
            for cut in [1, 7, 4096] {
                let mut encoder = StdinEncoder::default();
                let mut line: Vec<u8> = input
                    .chunks(cut)
                    .flat_map(|piece| encoder.encode(piece))
                    .collect();
                line.extend(encoder.finish());
                let reads = reads(&line);
                let (end, data) = reads.split_last().unwrap();
                assert!(end.is_empty(), "the last read is the end");
                assert!(
                    data.iter()
                        .all(|read| !read.is_empty() && read.len() < 4095)
                );
                assert_eq!(data.concat(), input);
            }
        }
    }
}
