/* A 64-bit Arm without an operating system, as QEMU's machine `virt` has it: calls a function on each input, and writes the bits of what it
   stores and its instructions. The virtual counter has a tick for 16 instructions (62.5 MHz, a nanosecond each), so that calls are repeated.
   Build with -DCALL=… -DINPUTS=… -DVALUES=… and inputs.h with `static const float inputs[][INPUTS]`. */
#include <stddef.h>
#include <stdint.h>

#include "inputs.h"

#define REPEATS 16
void CALL(const float *input, float *values);

__asm__(".section .text.start, \"ax\"\n.global _start\n_start:\n"
        "ldr x0, =stack_top\n mov sp, x0\n mov x0, #(3 << 20)\n msr cpacr_el1, x0\n isb\n bl begin\n.text\n");

void *memcpy(void *to, const void *from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ((volatile char *)to)[i] = ((const char *)from)[i];
    return to;
}

void *memset(void *to, int value, size_t count)
{
    uint64_t word = (unsigned char)value * 0x0101010101010101u;
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        *(volatile uint64_t *)((char *)to + i) = word;
    for (; i < count; i++)
        ((volatile char *)to)[i] = (char)value;
    return to;
}

static void semihosting(uint64_t operation, const void *argument)
{
    register uint64_t x0 __asm__("x0") = operation;
    register const void *x1 __asm__("x1") = argument;
    __asm__ volatile("hlt #0xf000" : "+r"(x0) : "r"(x1) : "memory");
}

static void hexadecimal(uint32_t value, char end)
{
    char text[10];
    for (int i = 0; i < 8; i++)
        text[i] = "0123456789abcdef"[(value >> (28 - 4 * i)) & 15u];
    text[8] = end;
    text[9] = '\0';
    semihosting(4, text);
}

/* Memory that may be read at any address is a matter of the page table: one block of a gigabyte, cached, as the address says. */
static uint64_t table[512] __attribute__((aligned(4096)));

static void map_memory(void)
{
    table[1] = 0x40000000u | 1u << 10 | 3u << 8 | 1u;
    __asm__ volatile("msr mair_el1, %0\n msr tcr_el1, %1\n msr ttbr0_el1, %2\n isb\n"
                     "mrs x9, sctlr_el1\n orr x9, x9, #1\n orr x9, x9, #4\n bic x9, x9, #2\n msr sctlr_el1, x9\n isb"
                     :
                     : "r"(0xffull), "r"(25ull | 1ull << 23 | 3ull << 12 | 1ull << 10 | 1ull << 8), "r"(table)
                     : "x9", "memory");
}

static uint64_t counter(void)
{
    uint64_t value;
    __asm__ volatile("isb\n mrs %0, cntvct_el0" : "=r"(value)::"memory");
    return value;
}

void begin(void)
{
    static float values[VALUES];
    const uint64_t block[2] = {0x20026u, 0u};
    map_memory();
    for (unsigned i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        const uint64_t before = counter();
        for (int k = 0; k < REPEATS; k++)
            CALL(inputs[i], values);
        const uint64_t taken = counter() - before;
        for (int k = 0; k < VALUES; k++) {
            uint32_t bits;
            __builtin_memcpy(&bits, &values[k], sizeof bits);
            hexadecimal(bits, ' ');
        }
        hexadecimal((uint32_t)(taken * 16u / REPEATS), '\n');
    }
    semihosting(0x18, block);
    for (;;) {
    }
}
