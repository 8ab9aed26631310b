/* Copyright (c) The hapgent.agent contributors
 * GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Simulates a disk that hangs: with this library in LD_PRELOAD, the system call that HANG_CALL names does not return
 * while the file HANG_FILE exists. fsync and rename hang for any file; open, read and write only for paths that contain
 * "state.json".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void hang(const char *call)
{
	const char *named = getenv("HANG_CALL"), *file = getenv("HANG_FILE");
	struct timespec moment = { 0, 10 * 1000 * 1000 };

	while (named && file && strcmp(named, call) == 0 && access(file, F_OK) == 0)
		nanosleep(&moment, NULL);
}

static void hang_at(const char *call, int descriptor)
{
	char name[64], path[4096];
	ssize_t length;

	snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
	length = readlink(name, path, sizeof path - 1);
	if (length < 0)
		return;
	path[length] = '\0';
	if (strstr(path, "state.json"))
		hang(call);
}

int fsync(int descriptor)
{
	int (*real)(int) = dlsym(RTLD_NEXT, "fsync");

	hang("fsync");
	return real(descriptor);
}

int renameat(int from, const char *old, int to, const char *new)
{
	int (*real)(int, const char *, int, const char *) = dlsym(RTLD_NEXT, "renameat");

	hang("rename");
	return real(from, old, to, new);
}

ssize_t write(int descriptor, const void *bytes, size_t size)
{
	ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");

	hang_at("write", descriptor);
	return real(descriptor, bytes, size);
}

ssize_t read(int descriptor, void *bytes, size_t size)
{
	ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");

	hang_at("read", descriptor);
	return real(descriptor, bytes, size);
}

static int open_after(int folder, const char *path, int flags, mode_t mode)
{
	int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, "openat");

	if (strstr(path, "state.json"))
		hang("open");
	return real(folder, path, flags, mode);
}

#define OPEN(name, folder, ...) \
	int name(__VA_ARGS__) \
	{ \
		va_list rest; \
		mode_t mode; \
		va_start(rest, flags); \
		mode = va_arg(rest, mode_t); \
		va_end(rest); \
		return open_after(folder, path, flags, mode); \
	}

OPEN(open, AT_FDCWD, const char *path, int flags, ...)
OPEN(open64, AT_FDCWD, const char *path, int flags, ...)
OPEN(openat64, at, int at, const char *path, int flags, ...)
