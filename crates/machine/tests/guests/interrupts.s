# The devices that interrupt, one after the other: the PIT through the PIC, the timer of the local
# APIC, an interrupt that the second CPU sends once it was started, and the UART's line through the
# I/O APIC, level-triggered, which comes again only if its end was told. Ends with status 7.
# Assembled with
#   as --32 -o NAME.o NAME.s && objcopy -O binary -j .text NAME.o NAME.bin
# Handlers return by RET, with interrupts still off: a KVM that emulates instructions has no IRET of
# protected mode. Loaded at 0x100000, entered as PVH has it: 32 bits, flat, no paging, interrupts off.
.intel_syntax noprefix
.code32
.org 0
entry:
  cli
  mov esp, 0x180000
  # gates: offset = handler(n), selector 8 (PVH's), interrupt gates
  mov edi, 0x110000
  mov eax, offset h20 + 0x100000
  mov ecx, 0x20
  call gate
  mov eax, offset h30 + 0x100000
  mov ecx, 0x30
  call gate
  mov eax, offset h31 + 0x100000
  mov ecx, 0x31
  call gate
  mov eax, offset h43 + 0x100000
  mov ecx, 0x43
  call gate
  lidt [idtr + 0x100000]
  # PIC: ICW1-4, all masked but IRQ 0
  mov al, 0x11
  out 0x20, al
  out 0xa0, al
  mov al, 0x20
  out 0x21, al
  mov al, 0x28
  out 0xa1, al
  mov al, 4
  out 0x21, al
  mov al, 2
  out 0xa1, al
  mov al, 1
  out 0x21, al
  out 0xa1, al
  mov al, 0xfe
  out 0x21, al
  mov al, 0xff
  out 0xa1, al
  # PIT: 2 ms
  mov al, 0x34
  out 0x43, al
  mov al, 0x52
  out 0x40, al
  mov al, 0x09
  out 0x40, al
  mov ebx, 0x120000
1: sti
  hlt
  cli
  cmp dword ptr [ebx], 5
  jb 1b
  mov al, 0xff
  out 0x21, al
  # LAPIC timer: periodic, vector 0x30, 1 ms
  mov esi, 0xfee00000
  mov dword ptr [esi + 0x3e0], 0xb
  mov dword ptr [esi + 0x320], 0x20030
  mov dword ptr [esi + 0x380], 1000000
2: sti
  hlt
  cli
  cmp dword ptr [ebx + 4], 5
  jb 2b
  mov dword ptr [esi + 0x320], 0x10030
  # second CPU: code at 0x8000
  mov ecx, ap_end - ap
  push esi
  mov esi, offset ap + 0x100000
  mov edi, 0x8000
  rep movsb
  pop esi
  mov dword ptr [esi + 0x310], 0x01000000
  mov dword ptr [esi + 0x300], 0x4500
  mov dword ptr [esi + 0x300], 0x4608
3: sti
  hlt
  cli
  cmp dword ptr [ebx + 8], 1
  jb 3b
  # I/O APIC: pin 4 level-triggered, vector 0x43, twice
  mov edi, 0xfec00000
  mov dword ptr [edi], 0x19
  mov dword ptr [edi + 0x10], 0
  mov dword ptr [edi], 0x18
  mov dword ptr [edi + 0x10], 0x8043
  mov ecx, 1
4: mov dx, 0x3fc
  mov al, 8
  out dx, al
  mov dx, 0x3f9
  mov al, 2
  out dx, al
5: sti
  hlt
  cli
  cmp dword ptr [ebx + 12], ecx
  jb 5b
  inc ecx
  cmp ecx, 4
  jb 4b
  mov al, 7
  out 0xf4, al
  hlt
gate:
  mov [edi + ecx * 8], ax
  mov word ptr [edi + ecx * 8 + 2], cs
  mov word ptr [edi + ecx * 8 + 4], 0x8e00
  shr eax, 16
  mov [edi + ecx * 8 + 6], ax
  ret
h20:
  inc dword ptr [0x120000]
  push eax
  mov al, 0x20
  out 0x20, al
  pop eax
  ret 8
h30:
  inc dword ptr [0x120004]
  jmp eoi
h31:
  inc dword ptr [0x120008]
  jmp eoi
h43:
  inc dword ptr [0x12000c]
  push eax
  push edx
  mov dx, 0x3f9
  xor eax, eax
  out dx, al
  pop edx
  pop eax
eoi:
  mov dword ptr [0xfee000b0], 0
  ret 8
idtr:
  .word 0x7ff
  .long 0x110000
.code16
ap:
  xor ax, ax
  mov ds, ax
  lgdt [ap_gdtr - ap + 0x8000]
  mov eax, cr0
  or al, 1
  mov cr0, eax
  .byte 0x66, 0xea
  .long ap32 - ap + 0x8000
  .word 8
ap_gdt:
  .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
ap_gdtr:
  .word 23
  .long ap_gdt - ap + 0x8000
.code32
ap32:
  mov ax, 0x10
  mov ds, ax
  mov dword ptr [0xfee000f0], 0x1ff
  mov dword ptr [0xfee00310], 0
  mov dword ptr [0xfee00300], 0x4031
6: cli
  hlt
  jmp 6b
ap_end:
