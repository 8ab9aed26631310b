/* Copyright (c) The hapgent.agent contributors
 * GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Simulates a program that forgets to sync: with this library in LD_PRELOAD, fsync does nothing for files, folders or
 * both, depending on whether NO_SYNC contains "file" and "folder".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int fsync(int descriptor)
{
	int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
	const char *named = getenv("NO_SYNC");
	struct stat status;

	if (named && fstat(descriptor, &status) == 0 && strstr(named, S_ISDIR(status.st_mode) ? "folder" : "file"))
		return 0;
	return real(descriptor);
}
