//! The vCPU's state to and from the form that all engines share.

use crate::cpu::Cpu;
use crate::shared::Shared;
use lapic::Lapic;
use std::sync::Arc;
use x86::VcpuState;

impl Cpu {
    pub(crate) fn new(
        _setup: &engine::Setup,
        _shared: Arc<Shared>,
        _lapic: Lapic,
        _index: usize,
    ) -> Self {
        todo!()
    }
    pub(crate) fn save(&self) -> VcpuState {
        todo!()
    }
    pub(crate) fn restore(&mut self, _state: &VcpuState) -> Result<(), state::Invalid> {
        todo!()
    }
}
