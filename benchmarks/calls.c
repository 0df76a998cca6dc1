/* Makes one kind of call N times and prints the median of the microseconds that it takes.
 *
 *     calls getattr FILE N     attributes that the filesystem has to be asked for, whatever the kernel has cached
 *     calls open FILE N        open for reading and close
 *     calls small DIRECTORY N  create, write 4 KiB, close, unlink
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *path;
static int asked_fd;
static char data[4096];

static int ask_attributes(void)
{
    struct statx attributes;
    return statx(asked_fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &attributes);
}

static int open_and_close(void)
{
    int fd = open(path, O_RDONLY);
    return fd < 0 || close(fd) != 0;
}

static int make_small_file(void)
{
    static char name[32];
    static int number;
    int fd;

    snprintf(name, sizeof name, "small%d", number++);
    fd = open(name, O_CREAT | O_WRONLY, 0644);
    return fd < 0 || write(fd, data, sizeof data) != sizeof data || close(fd) != 0 || unlink(name) != 0;
}

static double microseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int compare(const void *one, const void *other)
{
    double difference = *(const double *)one - *(const double *)other;
    return (difference > 0) - (difference < 0);
}

int main(int argc, char **argv)
{
    int (*call)(void) = ask_attributes;
    double *took;
    int n, i;

    if (argc != 4)
        return 2;
    path = argv[2];
    n = atoi(argv[3]);
    took = calloc(n, sizeof *took);
    if (!strcmp(argv[1], "getattr")) {
        asked_fd = open(path, O_PATH);
    } else if (!strcmp(argv[1], "open")) {
        call = open_and_close;
    } else {
        call = make_small_file;
        if (chdir(path) != 0)
            return 1;
    }
    for (i = 0; i < n; i++) {
        double start = microseconds();
        if (call() != 0) {
            perror(path);
            return 1;
        }
        took[i] = microseconds() - start;
    }
    qsort(took, n, sizeof *took, compare);
    printf("%.3f\n", took[n / 2]);
    return 0;
}
