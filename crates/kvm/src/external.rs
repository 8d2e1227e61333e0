//! The PIC's interrupt, on its way to the boot processor.
//!
//! The vector is asked of the PIC when the guest can take it, and given to the kernel by
//! `KVM_INTERRUPT`. From then on it is the kernel's to deliver, but it keeps the vector in a place
//! that no ioctl shows until the guest is next entered. `KvmVcpu::settle` makes it leave that
//! place before anybody asks for the vCPU's state.

use crate::calls::VcpuCalls;
use crate::mailbox::Mailbox;
use crate::run_page::RunExit;
use engine::Platform;
use std::io::Result;

/// How often `KVM_RUN` may come back without having delivered: once when a halt ends.
const ENTRIES_MAX: u8 = 2;

/// Where the last vector is.
#[derive(Debug, Default)]
pub(crate) struct External {
    /// Given to the kernel, which may not have delivered it: after how many entries.
    given: Option<u8>,
}

impl External {
    /// Before `KVM_RUN`: gives the kernel an interrupt, or asks to be told when it can be given.
    pub(crate) fn before_run(
        &mut self,
        calls: &dyn VcpuCalls,
        mailbox: &Mailbox,
        platform: &dyn Platform,
    ) -> Result<()> {
        let page = calls.page();
        if mailbox.external() && self.given.is_none() && page.is_ready_for_interrupt() {
            calls.interrupt(platform.acknowledge_external())?;
            self.given = Some(0);
        }
        page.request_window(mailbox.external());
        Ok(())
    }

    /// After `KVM_RUN` returned with `exit`.
    pub(crate) fn after_run(&mut self, entered: bool, exit: Option<&RunExit>) {
        if let Some(entries) = self.given
            && entered
        {
            let delivered = !matches!(exit, None | Some(RunExit::Window | RunExit::Interrupted));
            self.given = (!delivered && entries + 1 < ENTRIES_MAX).then_some(entries + 1);
        }
    }

    /// Whether the kernel may hold a vector where no ioctl shows it.
    pub(crate) fn is_hidden(&self) -> bool {
        self.given.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Board, Recorder};

    struct Scene {
        kernel: Recorder,
        mailbox: Mailbox,
        external: External,
        board: Board,
    }

    impl Scene {
        fn new() -> Self {
            let kernel = Recorder::new();
            Self {
                mailbox: Mailbox::new(kernel.page().clone()),
                kernel,
                external: External::default(),
                board: Board::new(),
            }
        }

        fn before_run(&mut self) -> Vec<String> {
            self.external
                .before_run(&self.kernel, &self.mailbox, &self.board)
                .unwrap();
            self.kernel.take_log()
        }

        fn ready(&self, ready: bool) {
            let ready = ready.into();
            self.kernel
                .page()
                .put_exit(0, |run| run.ready_for_interrupt_injection = ready);
        }
    }

    #[test]
    fn the_pic_is_asked_when_the_guest_can_take_it() {
        let mut scene = Scene::new();
        scene.mailbox.set_external(true);
        assert!(scene.before_run().is_empty());
        assert!(scene.kernel.page().wants_window());
        assert_eq!(scene.board.acknowledged(), 0);
        scene.ready(true);
        assert_eq!(scene.before_run(), ["interrupt 0x8"]);
        assert_eq!(scene.board.acknowledged(), 1);
    }

    #[test]
    fn a_second_waits_until_the_first_is_delivered() {
        let mut scene = Scene::new();
        scene.mailbox.set_external(true);
        scene.ready(true);
        assert_eq!(scene.before_run().len(), 1);
        // The guest was not entered, then it was in a halt.
        scene.external.after_run(false, None);
        assert!(scene.before_run().is_empty() && scene.external.is_hidden());
        scene.external.after_run(true, Some(&RunExit::Window));
        assert!(scene.before_run().is_empty() && scene.external.is_hidden());
        scene.external.after_run(true, Some(&RunExit::Window));
        assert_eq!(scene.before_run().len(), 1);
    }

    #[test]
    fn a_line_that_falls_again_asks_for_nothing() {
        let mut scene = Scene::new();
        scene.mailbox.set_external(true);
        scene.before_run();
        scene.mailbox.set_external(false);
        scene.ready(true);
        assert!(scene.before_run().is_empty());
        assert!(!scene.kernel.page().wants_window());
    }
}
