/* Included once per element type, before each cpu.c. */
#undef SIGMOID
#undef TANH
#define SIGMOID FN(sigmoid)
#define TANH FN(tanh)
