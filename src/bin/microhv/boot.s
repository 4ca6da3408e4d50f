# From the PVH entry (32-bit protected mode, paging off, EBX = hvm_start_info) to 64-bit Rust.

# The PVH note: a loader reads the 32-bit entry's address from it.
.section .note.Xen, "a", @note
.balign 4
.long 4, 8, 18
.asciz "Xen"
.quad microhv_start

.section .stack, "aw", @nobits
.balign 4096
    .skip {stack_size_bytes}
stack_top:

.section .bss.microhv, "aw", @nobits
.balign 4096
level4:
    .skip 4096
level3:
    .skip 4096 * {level3_tables}
level2:
    .skip 4096 * 4

.section .rodata.microhv, "a", @progbits
.balign 8
descriptors:
    .quad 0
    .quad 0x00209b0000000000            # 0x08: 64-bit code
    .quad 0x00cf93000000ffff            # 0x10: data
descriptors_pointer:
    .word descriptors_pointer - descriptors - 1
    .quad descriptors

# Gives the 2-MiB pages from \start to \end this low and high half beside the address.
.macro set_pages start, end, low, high
    mov ecx, offset \start
    jmp 3f
2:  mov eax, ecx
    shr eax, 21
    lea edi, [level2 + eax * 8]
    mov eax, ecx
    or eax, \low
    mov dword ptr [edi], eax
    mov dword ptr [edi + 4], \high
    add ecx, 1 << 21
3:  cmp ecx, offset \end
    jb 2b
.endm

.section .text.microhv, "ax", @progbits
.code32
.global microhv_start
microhv_start:
    cli
    cld
    mov esp, offset stack_top
    mov ebp, ebx                        # CPUID overwrites EBX

    # Long mode and no-execute are needed; without them there is nobody to tell but the exit port.
    mov eax, 0x80000001
    cpuid
    and edx, (1 << 29) | (1 << 20)
    cmp edx, (1 << 29) | (1 << 20)
    je 1f
    mov eax, {exit_failure}
    mov dx, {exit_port}
    out dx, eax
0:  hlt
    jmp 0b

    # Identity map. Below 4 GiB: 2-MiB pages, writable, not executable.
1:  xor ecx, ecx
2:  mov eax, ecx
    shl eax, 21
    or eax, 0x83                        # present, writable, leaf
    mov [level2 + ecx * 8], eax
    mov dword ptr [level2 + ecx * 8 + 4], 0x80000000
    inc ecx
    cmp ecx, 4 * 512
    jne 2b
    set_pages microhv_text_start, microhv_text_end, 0x81, 0
    set_pages microhv_text_end, microhv_constants_end, 0x81, 0x80000000
    set_pages microhv_constants_end, microhv_guard_end, 0, 0

    # From 4 GiB on: 1-GiB pages, if the processor has them.
    mov eax, 0x80000001
    cpuid
    test edx, 1 << 26
    jz 3f
    mov ecx, 4
2:  mov eax, ecx
    shl eax, 30
    or eax, 0x83
    mov edx, ecx
    shr edx, 2
    or edx, 0x80000000
    mov [level3 + ecx * 8], eax
    mov [level3 + ecx * 8 + 4], edx
    inc ecx
    cmp ecx, {level3_tables} * 512
    jne 2b
3:  mov dword ptr [level3], offset level2 + 0x0003
    mov dword ptr [level3 + 8], offset level2 + 0x1003
    mov dword ptr [level3 + 16], offset level2 + 0x2003
    mov dword ptr [level3 + 24], offset level2 + 0x3003
    mov eax, offset level3 + 3
    xor ecx, ecx
2:  mov [level4 + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, {level3_tables}
    jne 2b

    mov eax, offset level4
    mov cr3, eax
    mov eax, 1 << 5                     # CR4: PAE. OSFXSR stays clear: a stray SSE instruction faults.
    mov cr4, eax
    mov ecx, 0xc0000080                 # EFER: LME, NXE
    rdmsr
    or eax, (1 << 8) | (1 << 11)
    wrmsr
    mov eax, 0x80010033                 # CR0: PG, WP, NE, ET, MP, PE; caches on
    mov cr0, eax
    lgdt [descriptors_pointer]
    mov eax, 0x08
    push eax
    mov eax, offset long_mode
    push eax
    retf

.code64
long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov esp, offset stack_top           # clears the upper half
    mov edi, ebp
    xor ebp, ebp
    call {entry}
    ud2
