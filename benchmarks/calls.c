/* Makes one kind of call N times and prints the microseconds that each took.
 *
 *     calls getattr FILE N    attributes that the filesystem has to be asked for, whatever the kernel has cached
 *     calls open FILE N       open for reading and close
 *     calls small DIRECTORY N create, write 4 KiB, close, unlink
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int ask_attributes(const char *path, int n)
{
    struct statx attributes;
    int fd = open(path, O_PATH), i;
    for (i = 0; i < n; i++)
        if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &attributes) != 0)
            return 1;
    return close(fd);
}

static int open_and_close(const char *path, int n)
{
    int i;
    for (i = 0; i < n; i++) {
        int fd = open(path, O_RDONLY);
        if (fd < 0 || close(fd) != 0)
            return 1;
    }
    return 0;
}

static int make_small_files(const char *directory, int n)
{
    static char data[4096];
    char name[32];
    int i;
    if (chdir(directory) != 0)
        return 1;
    for (i = 0; i < n; i++) {
        int fd;
        snprintf(name, sizeof name, "small%d", i);
        fd = open(name, O_CREAT | O_WRONLY, 0644);
        if (fd < 0 || write(fd, data, sizeof data) != sizeof data || close(fd) != 0 || unlink(name) != 0)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    int (*job)(const char *, int);
    double start;
    int n;

    if (argc != 4)
        return 2;
    job = !strcmp(argv[1], "getattr") ? ask_attributes : !strcmp(argv[1], "open") ? open_and_close : make_small_files;
    n = atoi(argv[3]);
    start = now();
    if (job(argv[2], n) != 0) {
        perror(argv[2]);
        return 1;
    }
    printf("%.3f\n", (now() - start) * 1e6 / n);
    return 0;
}
