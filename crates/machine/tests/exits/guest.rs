//! A guest that does nothing but accesses to devices, round after round, and says on the debug
//! console where it is. `cargo xtask exits` times it, and a test of `machine` counts what it costs.

/// A kind of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// None, for comparison: an instruction that does nothing in the place of the access.
    Nothing,
    /// A byte to port 0x80, a register of the DMA controller's that does nothing.
    PortWrite,
    /// A byte from there.
    PortRead,
    /// 4 bytes to the I/O APIC's index register.
    MemoryWrite,
    /// 4 bytes from there.
    MemoryRead,
    /// 2 bytes to the notification address of a virtio device whose queue is in service and empty.
    Doorbell,
}

impl Kind {
    /// All, in the guest's order.
    pub(crate) const ALL: [Self; 6] = [
        Self::Nothing,
        Self::PortWrite,
        Self::PortRead,
        Self::MemoryWrite,
        Self::MemoryRead,
        Self::Doorbell,
    ];

    /// The instruction. EAX is 0 before the first, ESI the I/O APIC, EDI the doorbell.
    const fn instruction(self) -> &'static [u8] {
        match self {
            // nop
            Self::Nothing => &[0x90],
            // out 0x80, al
            Self::PortWrite => &[0xe6, 0x80],
            // in al, 0x80
            Self::PortRead => &[0xe4, 0x80],
            // mov [rsi], eax
            Self::MemoryWrite => &[0x89, 0x06],
            // mov eax, [rsi]
            Self::MemoryRead => &[0x8b, 0x06],
            // mov [rdi], ax
            Self::Doorbell => &[0x66, 0x89, 0x07],
        }
    }
}

/// What the guest writes to the debug console.
pub(crate) mod mark {
    use super::Kind;

    /// It runs.
    pub(crate) const START: u8 = b'S';
    /// It has done everything, and halts.
    pub(crate) const END: u8 = b'.';
    /// The virtio device did not come up.
    pub(crate) const NO_DEVICE: u8 = b'!';

    /// The rounds of a kind begin.
    pub(crate) const fn begin(kind: Kind) -> u8 {
        b'A' + kind as u8
    }

    /// A round of a kind is over.
    pub(crate) const fn round(kind: Kind) -> u8 {
        b'a' + kind as u8
    }
}

/// Accesses in a row, so that the loop around them is a small part.
pub(crate) const UNROLLED: u32 = 16;

/// Where the I/O APIC is (Intel ICH9 datasheet, 13.5).
const IO_APIC: u32 = 0xfec0_0000;
/// Memory that nobody uses: the virtio queue's rings.
const RINGS: u32 = 0x80_0000;

/// A kernel that makes `rounds` rounds of each kind, of so many times [`UNROLLED`] accesses as
/// `loops` has for it.
pub(crate) fn kernel(loops: [u32; Kind::ALL.len()], rounds: u32) -> Vec<u8> {
    assert!(!loops.contains(&0) && rounds > 0);
    let mut code = Code::default();
    code.mark(mark::START);
    code.start_virtio();
    // mov esi, IO_APIC
    code.bytes(&[0xbe]).bytes(&IO_APIC.to_le_bytes());
    for (kind, loops) in Kind::ALL.into_iter().zip(loops) {
        code.rounds(kind, loops, rounds);
    }
    code.mark(mark::END);
    code.halt();
    bzimage(&code.0)
}

/// A kernel that says that it runs, and halts.
pub(crate) fn starting_kernel() -> Vec<u8> {
    let mut code = Code::default();
    code.mark(mark::START);
    code.halt();
    bzimage(&code.0)
}

/// 64-bit code.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    fn mark(&mut self, mark: u8) {
        // mov al, MARK; out 0xe9, al
        self.bytes(&[0xb0, mark, 0xe6, 0xe9]);
    }

    fn halt(&mut self) {
        // cli; hlt; jmp back to the hlt
        self.bytes(&[0xfa, 0xf4, 0xeb, 0xfd]);
    }

    /// `rounds` times `loops` times [`UNROLLED`] accesses.
    fn rounds(&mut self, kind: Kind, loops: u32, rounds: u32) {
        self.mark(mark::begin(kind));
        // xor eax, eax; mov ebp, ROUNDS
        self.bytes(&[0x31, 0xc0, 0xbd]).bytes(&rounds.to_le_bytes());
        let round = self.0.len();
        // mov ecx, LOOPS
        self.bytes(&[0xb9]).bytes(&loops.to_le_bytes());
        let inner = self.0.len();
        for _ in 0..UNROLLED {
            self.bytes(kind.instruction());
        }
        // dec ecx; jnz INNER
        self.bytes(&[0xff, 0xc9]).jump_if_not_zero(inner);
        self.mark(mark::round(kind));
        // xor eax, eax; dec ebp; jnz ROUND
        self.bytes(&[0x31, 0xc0, 0xff, 0xcd])
            .jump_if_not_zero(round);
    }

    fn jump_if_not_zero(&mut self, target: usize) {
        let distance = target as isize - (self.0.len() as isize + 2);
        let distance = i8::try_from(distance).expect("a short jump");
        self.bytes(&[0x75, distance.to_le_bytes()[0]]);
    }

    /// Puts the queue of the virtio device in slot 2 in service (virtio 1.2, 3.1.1 and 4.1.4), with
    /// empty rings. Leaves its notification address in EDI.
    fn start_virtio(&mut self) {
        // Of the first function's command register: memory space and bus mastering (PCI 3.0, 6.2.2).
        self.select_config(0x04).config_write(0x6);
        self.select_config(0x10);
        // mov dx, 0xcfc; in eax, dx; and eax, ~0xf; mov ebx, eax
        self.bytes(&[0x66, 0xba, 0xfc, 0x0c, 0xed, 0x83, 0xe0, 0xf0, 0x89, 0xc3]);
        self.store8(0x14, 0).store8(0x14, 1).store8(0x14, 3);
        // VIRTIO_F_VERSION_1, bit 32; then FEATURES_OK.
        self.store32(0x08, 1).store32(0x0c, 1).store8(0x14, 0xb);
        self.store16(0x16, 0);
        for (field, page) in [(0x20, 0), (0x28, 1), (0x30, 2)] {
            self.store32(field, RINGS + page * 0x1000);
            self.store32(field + 4, 0);
        }
        self.store16(0x1c, 1).store8(0x14, 0xf);
        // cmp byte [rbx+0x14], 0xf; je over the mark
        self.bytes(&[0x80, 0x7b, 0x14, 0x0f, 0x74, 4]);
        self.mark(mark::NO_DEVICE);
        // lea edi, [rbx+0x3000]
        self.bytes(&[0x8d, 0xbb, 0x00, 0x30, 0x00, 0x00]);
    }

    /// Addresses a register of slot 2 (PCI 3.0, 3.2.2.3.2).
    fn select_config(&mut self, register: u8) -> &mut Self {
        let address = 0x8000_1000 | u32::from(register);
        // mov dx, 0xcf8; mov eax, ADDRESS; out dx, eax
        self.bytes(&[0x66, 0xba, 0xf8, 0x0c, 0xb8]);
        self.bytes(&address.to_le_bytes()).bytes(&[0xef])
    }

    fn config_write(&mut self, value: u32) {
        // mov dx, 0xcfc; mov eax, VALUE; out dx, eax
        self.bytes(&[0x66, 0xba, 0xfc, 0x0c, 0xb8]);
        self.bytes(&value.to_le_bytes()).bytes(&[0xef]);
    }

    /// `mov byte [rbx+offset], value`, and so on.
    fn store8(&mut self, offset: u32, value: u8) -> &mut Self {
        self.bytes(&[0xc6, 0x83]).bytes(&offset.to_le_bytes());
        self.bytes(&[value])
    }

    fn store16(&mut self, offset: u32, value: u16) -> &mut Self {
        self.bytes(&[0x66, 0xc7, 0x83]).bytes(&offset.to_le_bytes());
        self.bytes(&value.to_le_bytes())
    }

    fn store32(&mut self, offset: u32, value: u32) -> &mut Self {
        self.bytes(&[0xc7, 0x83]).bytes(&offset.to_le_bytes());
        self.bytes(&value.to_le_bytes())
    }
}

/// A bzImage (Linux, Documentation/arch/x86/boot.rst) with `code` at its 64-bit entry.
fn bzimage(code: &[u8]) -> Vec<u8> {
    /// The boot sector and one sector of setup code.
    const SETUP: usize = 0x400;
    const ENTRY: usize = 0x200;
    let paragraphs = (ENTRY + code.len()).div_ceil(16);
    let mut file = vec![0; SETUP + paragraphs * 16];
    let fields: [(usize, &[u8]); 13] = [
        (0x1f1, &[1]),
        (0x1f4, &(paragraphs as u32).to_le_bytes()),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &0x020f_u16.to_le_bytes()),
        (0x211, &[1]),
        (0x214, &0x10_0000_u32.to_le_bytes()),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x230, &0x20_0000_u32.to_le_bytes()),
        (0x234, &[1, 21, 1, 0]),
        (0x238, &2047_u32.to_le_bytes()),
        (0x258, &0x100_0000_u64.to_le_bytes()),
        (0x260, &0x40_0000_u32.to_le_bytes()),
    ];
    for (at, bytes) in fields {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file[SETUP + ENTRY..][..code.len()].copy_from_slice(code);
    file
}
