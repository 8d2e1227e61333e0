//! The machine's virtio devices.

use crate::console::{ConsoleInput, Receive, Room};
use device::shared;
use memory::GuestMemory;
use pci::{Root, Slot, SlotTaken};
use std::io::Write;
use std::sync::Arc;
use virtio::{Console, Rng, VirtioPci};

const CONSOLE: Slot = Slot::new(1);
const RNG: Slot = Slot::new(2);

impl Receive for VirtioPci<Console> {
    fn receive(&mut self, bytes: &[u8]) -> usize {
        VirtioPci::<Console>::receive(self, bytes)
    }
}

/// Plugs them in. Returns the console's input.
pub(crate) fn add(
    pci: &Arc<Root>,
    memory: &Arc<GuestMemory>,
    output: Option<Box<dyn Write + Send>>,
) -> Result<ConsoleInput, SlotTaken> {
    let room = Arc::new(Room::default());
    let output = output.unwrap_or_else(|| Box::new(std::io::sink()));
    let console = Console::new(output, room.callback());
    let console = shared(VirtioPci::new(console, pci.wires(CONSOLE), memory.clone()));
    pci.add(CONSOLE, console.clone())?;
    let rng = VirtioPci::new(Rng::host(), pci.wires(RNG), memory.clone());
    pci.add(RNG, shared(rng))?;
    Ok(ConsoleInput::new(console, room))
}
