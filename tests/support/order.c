/* Preloaded into a process: writes down, in one order, what it does to files. A line is the call's
 * name, a tab, and the path of the file; of standard output it is "said" and what was written. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

static void note(const char* call, const char* text, size_t length) {
  static int trace = -1;
  char line[PATH_MAX + 32];
  if (trace < 0)
    trace = (int)syscall(SYS_openat, AT_FDCWD, getenv("ORDER_TRACE"),
                         O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  int size = snprintf(line, sizeof line, "%s\t%.*s\n", call, (int)length, text);
  syscall(SYS_write, trace, line, (size_t)size);
}

static void note_file(const char* call, int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path);
  if (length > 0) note(call, path, (size_t)length);
}

/* The call and its line are one step: another thread's line cannot come between. */
#define NOTED(type, call, line) \
  pthread_mutex_lock(&order);   \
  type result = (call);         \
  if (result >= 0) {            \
    line;                       \
  }                             \
  pthread_mutex_unlock(&order); \
  return result

ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
  NOTED(ssize_t, syscall(SYS_pwrite64, fd, data, size, at), note_file("write", fd));
}

ssize_t pwrite(int fd, const void* data, size_t size, off_t at) {
  return pwrite64(fd, data, size, at);
}

ssize_t write(int fd, const void* data, size_t size) {
  NOTED(ssize_t, syscall(SYS_write, fd, data, size), if (fd == 1) note("said", data, size);
        else note_file("write", fd));
}

int fsync(int fd) {
  NOTED(int, (int)syscall(SYS_fsync, fd), note_file("sync", fd));
}

int fdatasync(int fd) {
  NOTED(int, (int)syscall(SYS_fdatasync, fd), note_file("sync", fd));
}

int ftruncate64(int fd, off64_t size) {
  NOTED(int, (int)syscall(SYS_ftruncate, fd, size), note_file("write", fd));
}

int ftruncate(int fd, off_t size) {
  return ftruncate64(fd, size);
}

int mkdir(const char* path, mode_t mode) {
  NOTED(int, (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode), note("name", path, strlen(path)));
}

int rename(const char* from, const char* to) {
  NOTED(int, (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0),
        note("name", to, strlen(to)));
}

int linkat(int from_dir, const char* from, int to_dir, const char* to, int flags) {
  NOTED(int, (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags),
        note("name", to, strlen(to)));
}

int link(const char* from, const char* to) {
  return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int open64(const char* path, int flags, ...) {
  mode_t mode = 0;
  if (flags & O_CREAT) {
    va_list rest;
    va_start(rest, flags);
    mode = va_arg(rest, mode_t);
    va_end(rest);
  }
  int made = (flags & O_CREAT) && access(path, F_OK) != 0;
  NOTED(int, (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode),
        if (made) note_file("name", result));
}

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return open64(path, flags, mode);
}
