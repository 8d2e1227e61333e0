//! Boots the guests on QEMU, to show that they and the session's ports do what is promised,
//! whatever our own machine does. Needs Debian's archive and `qemu-system-x86_64`, so it is run by
//! hand: `cargo nextest run -p image --run-ignored all`.
#![forbid(unsafe_code)]

use image::{
    Command, Control, ControlReader, GuestSpec, Input, KernelChoice, Options, Session, Size,
    StdinEncoder, Streams, Terminal, resize_line,
};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::{self, JoinHandle};

/// What a finished guest leaves.
struct Run {
    console: Vec<u8>,
    output: Vec<u8>,
    errors: Vec<u8>,
    status: Option<u8>,
}

/// A QEMU that ends when the test does.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a user types once the text before it was seen.
type Typed<'a> = (&'a str, &'a str);

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// Reads `port` to its end, and types into it.
fn reader(mut port: UnixStream, typed: &[Typed<'_>]) -> JoinHandle<Vec<u8>> {
    let typed: Vec<(String, String)> = typed
        .iter()
        .map(|&(seen, text)| (seen.to_owned(), text.to_owned()))
        .collect();
    thread::spawn(move || {
        let (mut bytes, mut from) = (Vec::new(), 0);
        let mut typed = typed.into_iter().peekable();
        let mut buffer = [0; 4096];
        // A reset is an end as well: the guest left input unread.
        while let Ok(count @ 1..) = port.read(&mut buffer) {
            bytes.extend_from_slice(&buffer[..count]);
            while let Some((seen, text)) = typed.peek() {
                let Some(at) = find(&bytes[from..], seen.as_bytes()) else {
                    break;
                };
                from += at + seen.len();
                port.write_all(text.as_bytes()).unwrap();
                typed.next();
            }
        }
        bytes
    })
}

/// Boots `kernel` with `session`. Once that is ready, `input` goes to its port, and `control` to
/// the guest's control port.
fn boot(kernel: &KernelChoice, session: &Session, input: &[u8], control: &str) -> Run {
    talk(kernel, session, input, control, &[])
}

/// As [`boot`], with a user on the session's port.
fn talk(
    kernel: &KernelChoice,
    session: &Session,
    input: &[u8],
    control: &str,
    typed: &[Typed<'_>],
) -> Run {
    let spec = GuestSpec {
        kernel: kernel.clone(),
    };
    let guest = image::debian(&spec, &Options::default(), &mut image::Silent).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let initrd = scratch.path().join("initrd");
    let mut bytes = std::fs::read(&guest.initrd).unwrap();
    bytes.extend(session.overlay(&[]).unwrap());
    std::fs::write(&initrd, bytes).unwrap();

    let mut qemu = std::process::Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg",
        "-m",
        "256",
        "-display",
        "none",
        "-nodefaults",
        "-no-reboot",
    ]);
    qemu.arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&initrd);
    qemu.args(["-append", session.kernel_parameters()])
        .stdin(Stdio::null());
    let listeners = [1, 2, 3, 4].map(|port| {
        let path = scratch.path().join(format!("com{port}"));
        qemu.arg("-serial").arg(format!("unix:{}", path.display()));
        listen(&path)
    });
    let mut qemu = Qemu(qemu.spawn().unwrap());
    let [com1, com2, com3, com4] = listeners.map(|listener| listener.accept().unwrap().0);

    let shell = matches!(session, Session::Shell(_));
    let input_port = if shell { &com1 } else { &com2 }.try_clone().unwrap();
    let console = reader(com1, if shell { typed } else { &[] });
    let output = reader(com2, if shell { &[] } else { typed });
    let errors = reader(com3, &[]);
    let mut status = None;
    let mut lines = ControlReader::default();
    let (mut from_guest, mut to_guest) = (com4.try_clone().unwrap(), com4);
    let mut buffer = [0; 256];
    while let Ok(count @ 1..) = from_guest.read(&mut buffer) {
        for control_line in buffer[..count].iter().filter_map(|&byte| lines.push(byte)) {
            match control_line {
                Control::Ready => {
                    to_guest.write_all(control.as_bytes()).unwrap();
                    let (input, mut port) = (input.to_owned(), input_port.try_clone().unwrap());
                    // Ends at the latest with QEMU, whether the guest took it all or not.
                    thread::spawn(move || port.write_all(&input));
                }
                Control::Exit(code) => status = Some(code),
            }
        }
    }
    qemu.0.wait().unwrap();
    Run {
        console: console.join().unwrap(),
        output: output.join().unwrap(),
        errors: errors.join().unwrap(),
        status,
    }
}

fn listen(path: &Path) -> UnixListener {
    UnixListener::bind(path).unwrap()
}

fn kernels() -> [KernelChoice; 2] {
    [
        KernelChoice::Default,
        KernelChoice::Series("6.12".to_owned()),
    ]
}

fn command(words: &[&[u8]], streams: Streams) -> Session {
    let words = words
        .iter()
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    let environment = vec![("ODD".to_owned(), OsString::from("it's \"odd\"\n"))];
    Session::Command(Command {
        words,
        environment,
        streams,
    })
}

/// Runs a shell script in both kernels, with `input` if there is some.
fn script(script: &str, input: Option<&[u8]>) -> Vec<Run> {
    let kind = if input.is_some() {
        Input::Stream
    } else {
        Input::Null
    };
    let session = command(&[b"sh", b"-c", script.as_bytes()], Streams::Pipes(kind));
    let mut encoder = StdinEncoder::default();
    let mut line: Vec<u8> = input
        .unwrap_or_default()
        .chunks(999)
        .flat_map(|piece| encoder.encode(piece))
        .collect();
    line.extend(encoder.finish());
    let line = if input.is_some() { &line[..] } else { &[] };
    kernels()
        .iter()
        .map(|kernel| boot(kernel, &session, line, ""))
        .collect()
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
    .take(length)
    .collect()
}

#[test]
#[ignore = "boots guests on QEMU"]
fn status_output_and_errors_come_out_apart() {
    for run in script("echo out; echo err >&2; exit 7", None) {
        assert_eq!(run.output, b"out\n");
        assert_eq!(run.errors, b"err\n");
        assert_eq!(run.status, Some(7));
        let console = String::from_utf8_lossy(&run.console);
        assert!(
            !console.contains("not found") && !console.contains("stty:"),
            "{console}"
        );
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn a_signal_is_128_more() {
    for (script_text, status) in [("kill -TERM $$", 143), ("kill -SEGV $$", 139)] {
        for run in script(script_text, None) {
            assert_eq!(run.status, Some(status));
        }
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn words_arrive_byte_for_byte() {
    let every: Vec<u8> = (1..=255).collect();
    let words: [&[u8]; 7] = [
        b"printf",
        b"%s|",
        &every,
        b"",
        b"-n",
        b"'$(id)' \\",
        "grün\n\t".as_bytes(),
    ];
    let session = command(&words, Streams::Pipes(Input::Null));
    for kernel in kernels() {
        let run = boot(&kernel, &session, b"", "");
        let expected = [&every[..], "||-n|'$(id)' \\|grün\n\t|".as_bytes()].concat();
        assert_eq!(run.output, expected);
        assert_eq!(run.status, Some(0));
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn variables_arrive() {
    for run in script("printf %s \"$ODD\"; test -z \"$TERM\" && whoami", None) {
        assert_eq!(run.output, b"it's \"odd\"\nroot\n");
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn missing_commands_are_127() {
    let session = command(&[b"no-such-command"], Streams::Pipes(Input::Null));
    let run = boot(&KernelChoice::Default, &session, b"", "");
    assert_eq!(run.status, Some(127));
    assert!(String::from_utf8_lossy(&run.errors).contains("not found"));
}

#[test]
#[ignore = "boots guests on QEMU"]
fn large_output_is_whole_to_its_last_byte() {
    for run in script("head -c 1000000 /dev/zero; echo end; echo end >&2", None) {
        assert_eq!(run.output.len(), 1_000_004);
        assert!(run.output.ends_with(b"\0end\n"));
        assert_eq!(run.errors, b"end\n");
        assert_eq!(run.status, Some(0));
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn input_comes_back_byte_for_byte_and_ends() {
    let every: Vec<u8> = (0..=255).collect();
    for input in [
        &every[..],
        b"",
        b"\n",
        b"no newline",
        &noise(100_000),
        &[b'x'; 20_000],
    ] {
        for run in script("cat; echo end >&2", Some(input)) {
            assert_eq!(run.output.len(), input.len());
            assert_eq!(run.output, input);
            assert_eq!(run.errors, b"end\n");
        }
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn input_that_nobody_reads_does_not_keep_the_guest() {
    for run in script("echo done; exit 4", Some(&noise(50_000))) {
        assert_eq!(
            (run.output.as_slice(), run.status),
            (&b"done\n"[..], Some(4))
        );
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn what_a_command_leaves_behind_ends_with_it() {
    for run in script("sleep 1000 & setsid sleep 1000 & echo done; exit 5", None) {
        assert_eq!(
            (run.output.as_slice(), run.status),
            (&b"done\n"[..], Some(5))
        );
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn modules_load() {
    let text = "modprobe -a virtio_pci virtio_console virtio_rng && cat /sys/class/misc/hw_random/rng_available";
    for run in script(text, None) {
        assert_eq!(run.errors, b"");
        assert_eq!(run.status, Some(0));
    }
}

fn terminal() -> Terminal {
    Terminal {
        kind: Some("xterm".into()),
        size: Some(Size {
            rows: 33,
            columns: 111,
        }),
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn a_command_on_a_terminal_is_told_a_new_size() {
    let text = "echo $TERM; tty; until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; exit 9";
    let session = command(
        &[b"sh", b"-c", text.as_bytes()],
        Streams::Terminal(terminal()),
    );
    let resize = resize_line(Size {
        rows: 50,
        columns: 132,
    });
    for kernel in kernels() {
        let run = boot(&kernel, &session, b"", &resize);
        let output = String::from_utf8_lossy(&run.output);
        for expected in ["xterm\r\n", "/dev/ttyS1\r\n"] {
            assert!(output.contains(expected), "{expected}: {output}");
        }
        assert_eq!(run.status, Some(9));
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn a_terminal_has_its_size_and_interrupts() {
    let session = command(
        &[b"sh", b"-c", b"stty size; echo go; cat"],
        Streams::Terminal(terminal()),
    );
    for kernel in kernels() {
        let typed = [("go", "x\n"), ("x\r\nx\r\n", "\x03")];
        let run = talk(&kernel, &session, b"", "", &typed);
        let output = String::from_utf8_lossy(&run.output);
        assert_eq!(run.status, Some(130), "{output}");
        assert!(output.contains("33 111\r\n"), "{output}");
    }
}

#[test]
#[ignore = "boots guests on QEMU"]
fn a_shell_is_on_the_console() {
    for kernel in kernels() {
        let typed = [
            ("# ", "stty size; echo $TERM; echo st''art; cat\n"),
            ("start", "x\n"),
            ("x\r\nx\r\n", "\x1a"),
            ("Stopped", ""),
            ("# ", "fg\n"),
            ("fg\r\ncat\r\n", "y\n"),
            ("y\r\ny\r\n", "\x03"),
            ("# ", "exit 6\n"),
        ];
        let run = talk(&kernel, &Session::Shell(terminal()), b"", "", &typed);
        let console = String::from_utf8_lossy(&run.console);
        for expected in ["33 111", "xterm"] {
            assert!(console.contains(expected), "{expected}: {console}");
        }
        assert!(!console.contains("job control"), "{console}");
        assert_eq!(run.status, Some(6), "{console}");
    }
}
