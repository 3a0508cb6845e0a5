// Makes a disk full, for the processes that preload this library: from one operation on, none that
// needs space in a folder succeeds. What frees space, and renaming, goes on to work.
//
// `fault_arm(folder, first, code)` counts from then on; the operation number `first`, from 1, and
// all later ones fail with the errno `code`. The first to fail writes half of its bytes, if it
// writes, as on a disk that fills. `fault_count()` is the number of operations so far. Of many
// writes to one file the first, second, fourth, eighth and so on are counted, as those between are
// alike.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char watched[PATH_MAX];
static atomic_long count, writes_in_turn;
static atomic_int written_last = -1;
static long first_to_fail;
static int code_of_failure;

void fault_arm(const char* folder, long first, int code) {
  count = writes_in_turn = 0;
  first_to_fail = first;
  code_of_failure = code;
  strncpy(watched, folder, sizeof watched - 1);
}

long fault_count(void) { return count; }

static int is_watched(int folder, const char* path) {
  char place[2 * PATH_MAX] = "", name[64];
  if (!watched[0]) return 0;
  if (path == NULL || (path[0] != '/' && folder != AT_FDCWD)) {
    snprintf(name, sizeof name, "/proc/self/fd/%d", folder);
    if (readlink(name, place, PATH_MAX - 1) < 0) return 0;
  } else if (path[0] != '/' && getcwd(place, PATH_MAX) == NULL) {
    return 0;
  }
  if (path != NULL) {
    strcat(place, "/");
    strncat(place, path, PATH_MAX - 2);
  }
  return strncmp(path != NULL && path[0] == '/' ? path : place, watched, strlen(watched)) == 0;
}

enum Fate { kDone, kHalf, kFails };

// Of an operation on `path`, relative to a folder, or, without a path, on an open file.
static enum Fate fate(int folder, const char* path, int is_write) {
  const int before = errno;
  const int concerns_us = is_watched(folder, path);
  errno = before;
  if (!concerns_us) return kDone;
  const int has_failed = first_to_fail != 0 && count >= first_to_fail;
  if (!is_write || folder != written_last) writes_in_turn = 0;
  written_last = is_write ? folder : -1;
  const long turn = ++writes_in_turn;
  if (!has_failed && is_write && (turn & (turn - 1))) return kDone;
  const long number = ++count;
  if (first_to_fail == 0 || number < first_to_fail) return kDone;
  errno = code_of_failure;
  return number == first_to_fail ? kHalf : kFails;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void* bytes, size_t size) {
  const enum Fate what = fate(file, NULL, 1);
  if (what == kDone) return REAL(write)(file, bytes, size);
  return what == kHalf && size > 1 ? REAL(write)(file, bytes, size / 2) : -1;
}

int fsync(int file) { return fate(file, NULL, 0) == kDone ? REAL(fsync)(file) : -1; }

int ftruncate64(int file, off64_t size) {
  return fate(file, NULL, 0) == kDone ? REAL(ftruncate64)(file, size) : -1;
}

int mkdir(const char* path, mode_t mode) {
  return fate(AT_FDCWD, path, 0) == kDone ? REAL(mkdir)(path, mode) : -1;
}

// A new name may need space as well, but a disk that is full already takes it in general.
static int renaming_fails(int folder, const char* path) { return fate(folder, path, 0) == kHalf; }

int rename(const char* from, const char* to) {
  return renaming_fails(AT_FDCWD, to) ? -1 : REAL(rename)(from, to);
}

int renameat(int from_folder, const char* from, int to_folder, const char* to) {
  return renaming_fails(to_folder, to) ? -1 : REAL(renameat)(from_folder, from, to_folder, to);
}

static mode_t mode_of(int flags, va_list rest) {
  return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                                      \
  int name(const char* path, int flags, ...) {                          \
    va_list rest;                                                       \
    va_start(rest, flags);                                              \
    const mode_t mode = mode_of(flags, rest);                           \
    va_end(rest);                                                       \
    if (flags & O_CREAT && fate(AT_FDCWD, path, 0) != kDone) return -1; \
    return REAL(name)(path, flags, mode);                               \
  }

#define OPENAT(name)                                                  \
  int name(int folder, const char* path, int flags, ...) {            \
    va_list rest;                                                     \
    va_start(rest, flags);                                            \
    const mode_t mode = mode_of(flags, rest);                         \
    va_end(rest);                                                     \
    if (flags & O_CREAT && fate(folder, path, 0) != kDone) return -1; \
    return REAL(name)(folder, path, flags, mode);                     \
  }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
