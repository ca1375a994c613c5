/* Copyright (C) 2026 the ganeti-kvmd developers
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The same as bare_epoll.py, in C: the least that a listener does at all.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char command[] = "{\"execute\": \"qmp_capabilities\"}\n";

int main(int argc, char **argv)
{
  struct epoll_event events[256];
  struct rlimit limit;
  struct dirent *entry;
  char data[4097], **paths;
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  DIR *directory = argc == 2 ? opendir(argv[1]) : NULL;

  if (directory == NULL || getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    fprintf(stderr, "Usage: %s DIRECTORY\n", argv[0]);
    return 2;
  }
  paths = calloc(limit.rlim_cur, sizeof(*paths));
  while ((entry = readdir(directory)) != NULL) {
    char *suffix = strstr(entry->d_name, ".kvmd");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct epoll_event wanted = {.events = EPOLLIN};

    if (suffix == NULL || suffix[5] != '\0')
      continue;
    if (snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", argv[1],
                 entry->d_name) >= (int)sizeof(address.sun_path))
      return 1;
    wanted.data.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connect(wanted.data.fd, (struct sockaddr *)&address,
                sizeof(address)) != 0) {
      perror(address.sun_path);
      return 1;
    }
    epoll_ctl(epoll, EPOLL_CTL_ADD, wanted.data.fd, &wanted);
    *suffix = '\0';
    if (asprintf(&paths[wanted.data.fd], "%s/%s.shutdown", argv[1],
                 entry->d_name) < 0)
      return 1;
  }
  for (;;) {
    int count = epoll_wait(epoll, events, 256, -1);

    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd;
      ssize_t length = recv(fd, data, sizeof(data) - 1, 0);

      if (length <= 0) {
        close(fd);
        free(paths[fd]);
        continue;
      }
      data[length] = '\0';
      if (strstr(data, "\"QMP\"") != NULL)
        send(fd, command, sizeof(command) - 1, 0);
      if (strstr(data, "\"SHUTDOWN\"") && strstr(data, "\"guest-shutdown\""))
        close(open(paths[fd], O_WRONLY | O_CREAT, 0600));
    }
  }
}
