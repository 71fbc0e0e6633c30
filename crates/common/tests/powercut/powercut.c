/*
 * A power cut, simulated: what a program has synced, and nothing else, is copied to a second place.
 *
 * Preloaded (LD_PRELOAD) into a program with
 *   POWERCUT_ROOT    the directory that the program writes to
 *   POWERCUT_SHADOW  where to keep what would survive
 * it replaces fsync, fdatasync, rename and unlink:
 *   - fsync and fdatasync of a file below the root copy its present content to the shadow, by temporary file and rename,
 *     before they return: a kill at any moment leaves the old or the new content there;
 *   - fsync of a directory gives the shadow empty files for new entries and removes entries that are gone;
 *   - renames and unlinks take effect in the shadow at once; renaming a file that was never synced leaves an empty one,
 *     as file systems with delayed allocation do.
 * sync_file_range is left alone: it makes nothing durable. The real fsync is not called, since nothing depends on it here.
 * All other programs (no environment) get the real functions.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char root[PATH_MAX];
static char shadow[PATH_MAX];
static size_t root_len;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_rmdir)(const char *);

static void fail(const char *what)
{
	fprintf(stderr, "powercut: %s: %s\n", what, strerror(errno));
	abort();
}

__attribute__((constructor)) static void begin(void)
{
	real_fsync = dlsym(RTLD_NEXT, "fsync");
	real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
	real_rename = dlsym(RTLD_NEXT, "rename");
	real_unlink = dlsym(RTLD_NEXT, "unlink");
	real_unlinkat = dlsym(RTLD_NEXT, "unlinkat");
	real_rmdir = dlsym(RTLD_NEXT, "rmdir");
	const char *from = getenv("POWERCUT_ROOT");
	const char *to = getenv("POWERCUT_SHADOW");
	if (!from || !to)
		return;
	if (!realpath(from, root) || !realpath(to, shadow))
		fail("POWERCUT_ROOT and POWERCUT_SHADOW must be directories");
	root_len = strlen(root);
}

/* The shadow's path of a path below the root, or 0. */
static int shadowed(const char *path, char *out)
{
	if (!root_len || strncmp(path, root, root_len) || (path[root_len] && path[root_len] != '/'))
		return 0;
	return snprintf(out, PATH_MAX, "%s%s", shadow, path + root_len) < PATH_MAX;
}

/* The absolute path that a descriptor was opened by, or 0 if it is gone. */
static int path_of(int fd, char *out)
{
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, out, PATH_MAX - 1);
	if (n <= 0)
		return 0;
	out[n] = 0;
	return out[0] == '/' && access(out, F_OK) == 0;
}

/* The absolute path of an argument of a call. */
static int absolute(int dirfd, const char *path, char *out)
{
	if (path[0] == '/')
		return snprintf(out, PATH_MAX, "%s", path) < PATH_MAX;
	char base[PATH_MAX];
	if (dirfd == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of(dirfd, base))
		return 0;
	return snprintf(out, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

static void make_parents(char *path)
{
	for (char *p = path + strlen(shadow) + 1; (p = strchr(p, '/')); p++) {
		*p = 0;
		if (mkdir(path, 0700) && errno != EEXIST)
			fail("mkdir");
		*p = '/';
	}
}

static void copy_file(const char *from, char *to)
{
	static char buffer[1 << 20];
	char temporary[PATH_MAX + 16];
	make_parents(to);
	snprintf(temporary, sizeof temporary, "%s.powercut", to);
	int in = open(from, O_RDONLY | O_CLOEXEC);
	if (in < 0)
		return; /* unlinked in the meantime */
	int out = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (out < 0)
		fail(temporary);
	for (;;) {
		ssize_t n = read(in, buffer, sizeof buffer);
		if (n < 0)
			fail("read");
		if (n == 0)
			break;
		for (ssize_t done = 0; done < n;) {
			ssize_t w = write(out, buffer + done, n - done);
			if (w < 0)
				fail("write");
			done += w;
		}
	}
	close(in);
	close(out);
	if (real_rename(temporary, to))
		fail("rename");
}

static void remove_tree(const char *path)
{
	DIR *dir = opendir(path);
	if (dir) {
		struct dirent *entry;
		while ((entry = readdir(dir))) {
			char below[PATH_MAX];
			if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
				continue;
			if (snprintf(below, sizeof below, "%s/%s", path, entry->d_name) < PATH_MAX)
				remove_tree(below);
		}
		closedir(dir);
		real_rmdir(path);
	} else {
		real_unlink(path);
	}
}

static void copy_entries(const char *from, char *to)
{
	struct dirent *entry;
	make_parents(to);
	if (mkdir(to, 0700) && errno != EEXIST)
		fail("mkdir");
	DIR *dir = opendir(from);
	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		char there[PATH_MAX], here[PATH_MAX];
		struct stat s;
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (snprintf(there, sizeof there, "%s/%s", to, entry->d_name) >= PATH_MAX ||
		    snprintf(here, sizeof here, "%s/%s", from, entry->d_name) >= PATH_MAX || lstat(here, &s))
			continue;
		if (S_ISDIR(s.st_mode)) {
			if (mkdir(there, 0700) && errno != EEXIST)
				fail("mkdir");
		} else if (S_ISREG(s.st_mode)) {
			int fd = open(there, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
			if (fd >= 0)
				close(fd);
		}
	}
	closedir(dir);
	dir = opendir(to);
	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		char there[PATH_MAX], here[PATH_MAX];
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (snprintf(there, sizeof there, "%s/%s", to, entry->d_name) < PATH_MAX &&
		    snprintf(here, sizeof here, "%s/%s", from, entry->d_name) < PATH_MAX && access(here, F_OK))
			remove_tree(there);
	}
	closedir(dir);
}

/* True if the descriptor lies below the root; its content is then in the shadow. */
static int kept(int fd)
{
	char path[PATH_MAX], to[PATH_MAX];
	struct stat s;
	if (!root_len || !path_of(fd, path) || !shadowed(path, to) || fstat(fd, &s))
		return 0;
	pthread_mutex_lock(&lock);
	if (S_ISDIR(s.st_mode))
		copy_entries(path, to);
	else
		copy_file(path, to);
	pthread_mutex_unlock(&lock);
	return 1;
}

int fsync(int fd)
{
	return kept(fd) ? 0 : real_fsync(fd);
}

int fdatasync(int fd)
{
	return kept(fd) ? 0 : real_fdatasync(fd);
}

static void renamed(const char *from, const char *to)
{
	char old[PATH_MAX], new[PATH_MAX];
	struct stat s;
	int had = shadowed(from, old), has = shadowed(to, new);
	if (has)
		make_parents(new);
	if (had && has && access(old, F_OK) == 0) {
		if (real_rename(old, new))
			fail("rename in the shadow");
	} else if (has && stat(to, &s) == 0 && S_ISDIR(s.st_mode)) {
		if (mkdir(new, 0700) && errno != EEXIST)
			fail("mkdir");
	} else if (has) {
		int fd = open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		if (fd >= 0)
			close(fd);
	} else if (had) {
		remove_tree(old);
	}
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
	char a[PATH_MAX], b[PATH_MAX];
	int known = root_len && absolute(from_dir, from, a) && absolute(to_dir, to, b);
	pthread_mutex_lock(&lock);
	int result = syscall(SYS_renameat2, from_dir, from, to_dir, to, 0);
	if (result == 0 && known)
		renamed(a, b);
	pthread_mutex_unlock(&lock);
	return result;
}

int rename(const char *from, const char *to)
{
	return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int unlinkat(int dirfd, const char *path, int flags)
{
	char full[PATH_MAX], to[PATH_MAX];
	int known = root_len && absolute(dirfd, path, full) && shadowed(full, to);
	pthread_mutex_lock(&lock);
	int result = real_unlinkat(dirfd, path, flags);
	if (result == 0 && known)
		remove_tree(to);
	pthread_mutex_unlock(&lock);
	return result;
}

int unlink(const char *path)
{
	return unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path)
{
	return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}
