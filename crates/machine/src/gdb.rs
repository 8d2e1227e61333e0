//! A server of the gdb remote protocol ("Debugging with GDB", appendix E).
//!
//! The machine's owner runs it: on [`Event::Debugger`] it calls [`GdbServer::serve`], which
//! returns when the debugger has gone or the machine has ended. Meanwhile the debugger holds the
//! machine: it stands whenever gdb shows its prompt, its clock too.
//!
//! - Threads 1 to n are the vCPUs. While one steps, the others stand.
//! - Memory is addressed by linear addresses of the current thread's vCPU. Devices are not
//!   touched: only RAM and ROM can be read, only RAM written.
//! - The target description is that of x86-64 in all modes, with the system registers. In 16- and
//!   32-bit code the registers are shown in 64 bits, RIP is the offset in CS, and breakpoints are
//!   linear addresses; gdb calls one in a segment with a base a SIGTRAP.
//! - Breakpoints, also those that gdb calls software breakpoints, don't change memory.
//!
//! Whoever reaches the port owns the guest: there is no authentication in the protocol.

mod debuggee;
mod registers;
mod wire;

use crate::Machine;
use crate::control::Event;
use debuggee::{Debuggee, Reason, signal};
use engine::DebugRequest;
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine as State;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};
use wire::{Message, Port, Stream, Wire};

/// What became of a debugger's visit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visit {
    /// Nobody was there.
    None,
    /// The debugger has gone. The machine is paused and free of breakpoints.
    Detached {
        /// What went wrong, if the debugger did not take its leave.
        problem: Option<String>,
    },
    /// The debugger wants the machine to end.
    Killed,
    /// The owner's handler ended the machine.
    Ended,
    /// The deadline has passed.
    TimedOut,
}

/// What the owner of a machine makes of an [`Event`] while a debugger is there. `Break` ends the
/// machine, with an exit status for gdb.
pub type Handler<'h> = dyn FnMut(&mut Machine, Event) -> ControlFlow<u8> + 'h;

/// A port where debuggers call.
pub struct GdbServer {
    port: Port,
}

impl GdbServer {
    /// Listens at `address`: `:PORT` is a TCP port of the loopback interface, `HOST:PORT` one of
    /// any, and a path is that of a Unix socket, which is made. Callers are announced through
    /// `events` of the machine that is to be debugged.
    ///
    /// # Errors
    /// If it can't be listened there.
    pub fn listen(address: &str, events: Sender<Event>) -> io::Result<Self> {
        Ok(Self {
            port: Port::open(address, events)?,
        })
    }

    /// Where it listens, as gdb's `target remote` takes it.
    pub fn address(&self) -> &str {
        &self.port.address
    }

    /// Lets the debugger that called, if one did, have `machine`, which is paused and is so again
    /// at the end.
    ///
    /// Events that are not the debugger's go to `handler`. It is also told of a triple fault, but
    /// not before gdb had a look at it.
    pub fn serve(
        &mut self,
        machine: &mut Machine,
        deadline: Option<Instant>,
        handler: &mut Handler<'_>,
    ) -> Visit {
        let Some(stream) = self.caller() else {
            return Visit::None;
        };
        let mut session = Session {
            debuggee: Debuggee::new(machine),
            messages: &self.port.messages,
            bytes: VecDeque::new(),
            closed: false,
            deadline,
            handler,
        };
        let visit = session.run(Wire::new(stream)).unwrap_or_else(|error| {
            let problem = Some(error.to_string());
            Visit::Detached { problem }
        });
        let unheard = session.debuggee.into_unheard();
        machine.pause();
        machine.set_debug(&DebugRequest::default());
        for event in unheard {
            // The machine is there to receive it.
            let _ = self.port.events.send(event);
        }
        // The announcement of the next caller may have been taken.
        let _ = self.port.events.send(Event::Debugger);
        visit
    }

    /// The next caller; what an earlier one left is dropped.
    fn caller(&self) -> Option<Stream> {
        self.port
            .messages
            .try_iter()
            .find_map(|message| match message {
                Message::Connected(stream) => Some(stream),
                Message::Bytes(_) | Message::Closed => None,
            })
    }
}

type Error = GdbStubError<Infallible, io::Error>;

/// One debugger's visit.
struct Session<'s, 'm, 'h> {
    debuggee: Debuggee<'m>,
    messages: &'s Receiver<Message>,
    /// What gdb sent and was not looked at yet.
    bytes: VecDeque<u8>,
    /// The connection is closed; `bytes` are its last.
    closed: bool,
    deadline: Option<Instant>,
    handler: &'s mut Handler<'h>,
}

impl<'m> Session<'_, 'm, '_> {
    fn run(&mut self, wire: Wire) -> Result<Visit, Error> {
        // These were announced together with the call.
        self.hear();
        let mut gdb = GdbStub::new(wire).run_state_machine(&mut self.debuggee)?;
        loop {
            gdb = match gdb {
                State::Idle(idle) => match self.bytes.pop_front() {
                    Some(byte) => match idle.incoming_data(&mut self.debuggee, byte)? {
                        // The guest stands already.
                        State::CtrlCInterrupt(interrupt) => {
                            interrupt.interrupt_handled(&mut self.debuggee, None::<Reason>)?
                        }
                        next => next,
                    },
                    None => match self.wait_idle() {
                        Some(visit) => return Ok(visit),
                        None => idle.into(),
                    },
                },
                State::Running(mut running) => {
                    if let Some(byte) = self.bytes.pop_front() {
                        running.incoming_data(&mut self.debuggee, byte)?
                    } else if let Some((reason, text)) = self.due() {
                        if let Some(text) = text {
                            // If the wire is broken, the report fails as well.
                            let _ = running.borrow_conn().print(&text);
                        }
                        running.report_stop(&mut self.debuggee, reason)?
                    } else {
                        // An acknowledgement may wait there.
                        if running.borrow_conn().flush().is_err() || self.closed {
                            return Ok(Visit::Detached { problem: None });
                        }
                        self.debuggee.go();
                        if !self.receive() {
                            return Ok(Visit::TimedOut);
                        }
                        running.into()
                    }
                }
                State::CtrlCInterrupt(interrupt) => {
                    let reason = Some(signal(0, Signal::SIGINT));
                    interrupt.interrupt_handled(&mut self.debuggee, reason)?
                }
                State::Disconnected(end) => {
                    return Ok(match end.get_reason() {
                        DisconnectReason::Kill => Visit::Killed,
                        DisconnectReason::Disconnect => Visit::Detached { problem: None },
                        DisconnectReason::TargetExited(_)
                        | DisconnectReason::TargetTerminated(_) => Visit::Ended,
                    });
                }
            }
        }
    }

    /// Waits for gdb's next word while the guest stands. Returns how the visit ended, if it did.
    fn wait_idle(&mut self) -> Option<Visit> {
        if self.closed {
            return Some(Visit::Detached { problem: None });
        }
        if !self.receive() {
            return Some(Visit::TimedOut);
        }
        // People don't wait for gdb; what the guest did does.
        while let Some(at) = self
            .debuggee
            .pending
            .iter()
            .position(Event::is_from_outside)
        {
            let event = self.debuggee.pending.remove(at)?;
            if self.handle(event).is_break() {
                return Some(Visit::Ended);
            }
        }
        None
    }

    /// Waits until something happens, which is then in `bytes`, `closed` and what is pending; the
    /// guest stands. `false` if the deadline passed first.
    fn receive(&mut self) -> bool {
        let left = self
            .deadline
            .map(|d| d.saturating_duration_since(Instant::now()));
        let Some(event) = self.debuggee.machine.wait(left) else {
            return false;
        };
        self.debuggee.pending.push_back(event);
        // Now all vCPUs stand, and have told why.
        while let Some(event) = self.debuggee.machine.wait(Some(Duration::ZERO)) {
            self.debuggee.pending.push_back(event);
        }
        self.debuggee
            .pending
            .retain(|event| *event != Event::Debugger);
        self.hear();
        true
    }

    /// Takes what gdb sent.
    fn hear(&mut self) {
        // Behind `Closed` are the next caller's messages.
        while !self.closed
            && let Ok(message) = self.messages.try_recv()
        {
            match message {
                Message::Bytes(bytes) => self.bytes.extend(bytes),
                Message::Closed => self.closed = true,
                Message::Connected(_) => unreachable!("a caller has hung up before the next"),
            }
        }
    }

    /// What gdb is to be told now, with words for its user.
    fn due(&mut self) -> Option<(Reason, Option<String>)> {
        while let Some(event) = self.debuggee.take_due() {
            let (vcpu, name, text) = match &event {
                Event::Debug { vcpu, stop } => match self.debuggee.reason(*vcpu, *stop) {
                    Some(reason) => return Some((reason, None)),
                    None => continue,
                },
                Event::TripleFault { vcpu, text } => (*vcpu, Signal::SIGSEGV, text.clone()),
                Event::Failed { vcpu, text } => (vcpu.unwrap_or(0), Signal::SIGABRT, text.clone()),
                _ => match self.handle(event) {
                    ControlFlow::Continue(()) => continue,
                    ControlFlow::Break(status) => return Some((Reason::Exited(status), None)),
                },
            };
            // gdb was told, and goes on all the same.
            if let Some(first) = self.debuggee.dead.remove(&vcpu) {
                match self.handle(first) {
                    ControlFlow::Continue(()) => continue,
                    ControlFlow::Break(status) => return Some((Reason::Exited(status), None)),
                }
            }
            self.debuggee.dead.insert(vcpu, event);
            return Some((signal(vcpu, name), Some(format!("doppel: {text}\n"))));
        }
        None
    }

    fn handle(&mut self, event: Event) -> ControlFlow<u8> {
        let reset = event == Event::Reset;
        let flow = (self.handler)(self.debuggee.machine, event);
        if reset {
            self.debuggee.start_anew();
        }
        flow
    }
}
