/* Changes the current directory as fast as it can: COUNT times create, rename and delete, each file by itself
   ("interleaved") or all files in three loops ("loops"). */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char old_name[32], new_name[32];

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static void name_files(int number)
{
	snprintf(old_name, sizeof(old_name), "a%d", number);
	snprintf(new_name, sizeof(new_name), "b%d", number);
}

static void create(int number)
{
	int fd;

	name_files(number);
	fd = open(old_name, O_CREAT | O_EXCL | O_WRONLY, 0644);
	check(fd, "open");
	close(fd);
}

static void move(int number)
{
	name_files(number);
	check(rename(old_name, new_name), "rename");
}

static void delete(int number)
{
	name_files(number);
	check(unlink(new_name), "unlink");
}

int main(int argc, char **argv)
{
	int count, number;

	if (argc != 3)
		return 2;
	count = atoi(argv[2]);
	if (strcmp(argv[1], "interleaved") == 0) {
		for (number = 0; number < count; number++) {
			create(number);
			move(number);
			delete(number);
		}
	} else {
		for (number = 0; number < count; number++)
			create(number);
		for (number = 0; number < count; number++)
			move(number);
		for (number = 0; number < count; number++)
			delete(number);
	}
	return 0;
}
