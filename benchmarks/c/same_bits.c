/* Executes networks on inputs that it draws, and writes the bits of their logits and some classes. Build with nets.h, which same_bits.py
   writes: headers of the networks, `nets`, MOST_INPUTS, MOST_CLASSES and ARENA_FLOATS. How many inputs: the first argument, or -DINPUTS=… with -DBARE_METAL=1. */
#include <stdint.h>
#include <string.h>

#include "nets.h"

/* For each input: its class, or NOT_ASKED, and its logits. */
#define NOT_ASKED INT32_MIN

#if BARE_METAL
int vs_semihosting(int operation, const void *argument);

static int32_t file;

static void begin(void)
{
    static const char name[] = "out.bin";
    const uint32_t block[3] = {(uint32_t)(uintptr_t)name, 5u, sizeof name - 1u}; /* 5: "wb" */
    file = vs_semihosting(1, block);
}

static void put(const void *from, uint32_t bytes)
{
    const uint32_t block[3] = {(uint32_t)file, (uint32_t)(uintptr_t)from, bytes};
    (void)vs_semihosting(5, block);
}
#else
#include <stdio.h>
#include <stdlib.h>

static void put(const void *from, uint32_t bytes)
{
    if (fwrite(from, 1, bytes, stdout) != bytes)
        exit(1);
}
#endif

static uint32_t state;

static uint32_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

/* Ends of [-1, 1] and of the range of float32, and their neighbours. */
static const uint32_t ends[12] = {0x00000000u, 0x80000000u, 0x3F800000u, 0xBF800000u, 0x3F7FFFFFu, 0x3F800001u,
                                  0x00800000u, 0x80800000u, 0x007FFFFFu, 0x00000001u, 0x80000001u, 0x3F000000u};
/* Not a number, infinity, and what overflows. */
static const uint32_t far[4] = {0x7FC00000u, 0x7F800000u, 0x7F7FFFFFu, 0xFF7FFFFFu};

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Input `index` of network `seed`; its kind is index % 8. Every operation is exact. */
static void make_input(uint32_t seed, uint32_t index, float *x, uint32_t size)
{
    const uint32_t kind = index % 8u;
    state = (seed * 0x9E3779B9u + index * 0x85EBCA6Bu) | 1u;
    for (int i = 0; i < 8; i++)
        (void)draw();
    const uint32_t place = draw() % size;
    for (uint32_t i = 0; i < size; i++) {
        const uint32_t a = draw(), b = draw();
        const float positive = (float)(a >> 8) * 0x1p-24f, both = ((float)(a >> 8) - 0x1p23f) * 0x1p-23f;
        const float tiny = from_bits(b % 4u != 0u ? a & 0x807FFFFFu : 0u);
        switch (kind) {
        case 0:
            x[i] = positive;
            break;
        case 2:
            x[i] = 4.0f * both;
            break;
        case 3: /* exponents -20 to 3 */
            x[i] = from_bits((a & 0x807FFFFFu) | ((107u + b % 24u) << 23));
            break;
        case 4:
            x[i] = tiny;
            break;
        case 5:
            x[i] = from_bits(ends[b % 12u]);
            break;
        case 6:
            x[i] = (b & 16u) != 0u ? tiny : both;
            break;
        default:
            x[i] = both;
            break;
        }
    }
    if (kind == 7u)
        x[place] = from_bits(far[index / 8u % 4u]);
}

static float arena[ARENA_FLOATS], input[MOST_INPUTS], logits[MOST_CLASSES];

#if BARE_METAL
int main(void)
{
    const uint32_t inputs = INPUTS;
    begin();
#else
int main(int count, char **arguments)
{
    const uint32_t inputs = count > 1 ? (uint32_t)strtoul(arguments[1], NULL, 10) : 0u;
#endif
    for (uint32_t n = 0; n < sizeof nets / sizeof nets[0]; n++) {
        memset(arena, 255, sizeof arena); /* not a number, wherever a network would read what it has not written */
        for (uint32_t i = 0; i < inputs; i++) {
            make_input(nets[n].seed, i, input, nets[n].inputs);
            int32_t class = NOT_ASKED;
            if (i % 4u == 3u)
                class = nets[n].classify(arena, ARENA_FLOATS, input);
            if (nets[n].logits(arena, ARENA_FLOATS, input, logits) != 0)
                return 2;
            put(&class, 4u);
            put(logits, 4u * nets[n].classes);
        }
    }
    return 0;
}
