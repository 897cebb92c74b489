/* Prints the rates that this machine cannot exceed: FLOP/s of fused
   multiply-adds in float32, bytes/s of a triad over arrays of 256 MiB. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

typedef float vec __attribute__((vector_size(64)));

enum { CHAINS = 16, STEPS = 4000000, NUMBERS = 64 << 20, TRIES = 2 };

static double fma_rate(void) {
  double start = omp_get_wtime();
  float kept = 0;
#pragma omp parallel reduction(+ : kept)
  {
    /* as many chains as hide the latency of an operation */
    vec sum[CHAINS], scale = {0}, shift = {0};
    for (int j = 0; j < CHAINS; j++) sum[j] = scale + (float)j;
    scale = scale + 0.9999f;
    shift = shift + 0.0001f;
    for (long i = 0; i < STEPS; i++)
#pragma GCC unroll 16
      for (int j = 0; j < CHAINS; j++) sum[j] = sum[j] * scale + shift;
    for (int j = 0; j < CHAINS; j++) kept += sum[j][0];
  }
  double seconds = omp_get_wtime() - start;
  if (kept == 1.0f) puts("");
  return 2.0 * 16 * CHAINS * STEPS * omp_get_max_threads() / seconds;
}

static double triad_rate(float *a, const float *b, const float *c) {
  double start = omp_get_wtime();
#pragma omp parallel for schedule(static)
  for (long i = 0; i < NUMBERS; i++) a[i] = b[i] + 3.0f * c[i];
  return 3.0 * sizeof(float) * NUMBERS / (omp_get_wtime() - start);
}

int main(void) {
  float *a = malloc(sizeof(float) * NUMBERS);
  float *b = malloc(sizeof(float) * NUMBERS);
  float *c = malloc(sizeof(float) * NUMBERS);
  if (!a || !b || !c) return 1;
#pragma omp parallel for schedule(static)
  for (long i = 0; i < NUMBERS; i++) a[i] = 0, b[i] = 1, c[i] = 2;
  double fma = 0, triad = 0;
  for (int i = 0; i < TRIES; i++) {
    double rate = fma_rate();
    if (rate > fma) fma = rate;
    rate = triad_rate(a, b, c);
    if (rate > triad) triad = rate;
  }
  printf("{\"fma_flops\": %.6g, \"stream_bytes\": %.6g, \"threads\": %d}\n",
         fma, triad, omp_get_max_threads());
  return 0;
}
