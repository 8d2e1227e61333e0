# Prints a letter at each tick of the local APIC's timer, up to the 40th; ends with status 7, or with 9
# if the TSC has gone back.
# Assembled with
#   as --32 -o NAME.o NAME.s && objcopy -O binary -j .text NAME.o NAME.bin
# Handlers return by RET, with interrupts still off: a KVM that emulates instructions has no IRET of
# protected mode. Loaded at 0x100000, entered as PVH has it: 32 bits, flat, no paging, interrupts off.
.intel_syntax noprefix
.code32
entry:
  cli
  mov esp, 0x180000
  mov edi, 0x110000
  mov eax, offset h30 + 0x100000
  mov ecx, 0x30
  mov [edi + ecx * 8], ax
  mov word ptr [edi + ecx * 8 + 2], cs
  mov word ptr [edi + ecx * 8 + 4], 0x8e00
  shr eax, 16
  mov [edi + ecx * 8 + 6], ax
  lidt [idtr + 0x100000]
  mov al, 0xff
  out 0x21, al
  out 0xa1, al
  mov esi, 0xfee00000
  mov dword ptr [esi + 0x3e0], 0xb
  mov dword ptr [esi + 0x320], 0x20030
  mov dword ptr [esi + 0x380], 5000000
  xor ebx, ebx
  xor ebp, ebp
1: sti
  hlt
  cli
  # time does not go back
  rdtsc
  cmp edx, ebp
  jb bad
  ja 2f
  cmp eax, ebx
  jb bad
2: mov ebp, edx
  mov ebx, eax
  # one letter for each tick
  mov ecx, [0x120000]
  cmp ecx, 40
  jae done
  mov al, cl
  add al, 0x41
  mov dx, 0x3f8
  out dx, al
  jmp 1b
done:
  mov al, 7
  out 0xf4, al
bad:
  mov al, 9
  out 0xf4, al
  hlt
h30:
  inc dword ptr [0x120000]
  mov dword ptr [0xfee000b0], 0
  ret 8
idtr:
  .word 0x7ff
  .long 0x110000
