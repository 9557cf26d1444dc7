/* Executes a network on each input, and writes the bits of its logits and the instructions that it took. Build with the model's prefix:
   -DMODEL_CLASSES=… -DMODEL_INPUTS=… -DMODEL_LOGITS=…, and inputs.h with `static const float inputs[][MODEL_INPUTS]`. */
#include <stdint.h>
#include <string.h>

#include "inputs.h"

int vs_semihosting(int operation, const void *argument);
void MODEL_LOGITS(const float *input, float *logits);

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_VALUE (*(volatile uint32_t *)0xE000E018u)

static void hexadecimal(uint32_t value, char end)
{
    char text[10];
    for (int i = 0; i < 8; i++)
        text[i] = "0123456789abcdef"[(value >> (28 - 4 * i)) & 15u];
    text[8] = end;
    text[9] = '\0';
    (void)vs_semihosting(4, text);
}

static void nothing(const float *input, float *logits)
{
    (void)input;
    (void)logits;
    __asm__ volatile("" ::: "memory");
}

static uint32_t ticks(void (*function)(const float *, float *), const float *input, float *logits)
{
    SYSTICK_CONTROL = 0u;
    SYSTICK_RELOAD = 0xFFFFFFu;
    SYSTICK_VALUE = 0u;
    SYSTICK_CONTROL = 5u; /* on, the processor's clock */
    const uint32_t before = SYSTICK_VALUE;
    function(input, logits);
    const uint32_t after = SYSTICK_VALUE;
    return (before - after) & 0xFFFFFFu;
}

int main(void)
{
    static float logits[MODEL_CLASSES];
    const uint32_t empty = ticks(nothing, inputs[0], logits);
    for (unsigned i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        const uint32_t taken = ticks(MODEL_LOGITS, inputs[i], logits);
        for (int k = 0; k < MODEL_CLASSES; k++) {
            uint32_t bits;
            memcpy(&bits, &logits[k], sizeof bits);
            hexadecimal(bits, ' ');
        }
        hexadecimal(taken - empty, '\n');
    }
    return 0;
}
