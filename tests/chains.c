/* Makes COUNT chains of directories CHAIN/a/b/c/d in the current directory as fast as it can, a file at each level. */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const LEVELS[] = { "", "/a", "/b", "/c", "/d" };

int main(int argc, char **argv)
{
	char path[128], file[160];
	int chain, fd, length;
	unsigned level;

	for (chain = 0; argc == 2 && chain < atoi(argv[1]); chain++) {
		length = snprintf(path, sizeof(path), "%d", chain);
		for (level = 0; level < sizeof(LEVELS) / sizeof(LEVELS[0]); level++) {
			length += snprintf(path + length, sizeof(path) - length, "%s", LEVELS[level]);
			snprintf(file, sizeof(file), "%s/file", path);
			if (mkdir(path, 0755) < 0 || (fd = open(file, O_CREAT | O_EXCL | O_WRONLY, 0644)) < 0) {
				perror(path);
				return 1;
			}
			close(fd);
		}
	}
	return 0;
}
