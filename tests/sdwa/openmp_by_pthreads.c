// Stands in for GNU's OpenMP, whose barriers ThreadSanitizer does not see: threads of a parallel
// region are started and joined for each, which it does.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

static __thread int number, count = 1;
static atomic_int wanted = 2;

typedef struct {
  void (*function)(void*);
  void* data;
  int number, count;
} Part;

static void* run(void* given) {
  const Part* part = given;
  number = part->number;
  count = part->count;
  part->function(part->data);
  return NULL;
}

void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags) {
  (void)flags;
  const int parts = threads ? (int)threads : wanted;
  if (parts == 1 || count > 1) return function(data);
  Part* part = malloc(parts * sizeof *part);
  pthread_t* thread = malloc(parts * sizeof *thread);
  for (int i = 0; i < parts; ++i) {
    part[i] = (Part){function, data, i, parts};
    if (i) pthread_create(thread + i, NULL, run, part + i);
  }
  run(part);
  number = 0;
  count = 1;
  for (int i = 1; i < parts; ++i) pthread_join(thread[i], NULL);
  free(part);
  free(thread);
}

int omp_get_thread_num(void) { return number; }
int omp_get_num_threads(void) { return count; }
int omp_get_max_threads(void) { return wanted; }
int omp_in_parallel(void) { return count > 1; }
void omp_set_num_threads(int threads) { wanted = threads; }
