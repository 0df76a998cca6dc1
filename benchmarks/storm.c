/* Creates, renames and deletes N files in a directory as fast as it can, and prints the seconds it took.
 *
 *     storm DIRECTORY N
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    char old_name[32], new_name[32];
    double start;
    int n, i;

    if (argc != 3 || chdir(argv[1]) != 0)
        return 2;
    n = atoi(argv[2]);
    start = now();
    for (i = 0; i < n; i++) {
        int fd;
        snprintf(old_name, sizeof old_name, "f%d", i);
        fd = open(old_name, O_CREAT | O_WRONLY, 0644);
        if (fd < 0)
            return 1;
        close(fd);
    }
    for (i = 0; i < n; i++) {
        snprintf(old_name, sizeof old_name, "f%d", i);
        snprintf(new_name, sizeof new_name, "g%d", i);
        if (rename(old_name, new_name) != 0)
            return 1;
    }
    for (i = 0; i < n; i++) {
        snprintf(new_name, sizeof new_name, "g%d", i);
        if (unlink(new_name) != 0)
            return 1;
    }
    printf("%.3f\n", now() - start);
    return 0;
}
