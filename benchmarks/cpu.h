/* The CPU time of a process tree, and of this process. */
#ifndef CPU_H
#define CPU_H

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static double process_cpu(pid_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    unsigned long user = 0, system = 0;
    long child_user = 0, child_system = 0;
    char *rest = strrchr(text, ')');
    if (rest != NULL)
        (void)!sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %ld %ld",
                      &user, &system, &child_user, &child_system);
    double tick = (double)sysconf(_SC_CLK_TCK);
    double own = (double)(user + system) / tick;
    /* The same sum from the scheduler's clock, which is finer than hundredths of a second. */
    clockid_t id;
    struct timespec t;
    if (clock_getcpuclockid(pid, &id) == 0 && clock_gettime(id, &t) == 0)
        own = (double)t.tv_sec + (double)t.tv_nsec / 1e9;
    return own + (double)(child_user + child_system) / tick;
}

static double tree_cpu(pid_t pid)
{
    char path[320];
    double total = process_cpu(pid);
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    if (tasks == NULL)
        return total;
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        if (!isdigit((unsigned char)task->d_name[0]))
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/children", (int)pid, task->d_name);
        FILE *file = fopen(path, "r");
        if (file == NULL)
            continue;
        for (int child; fscanf(file, "%d", &child) == 1;)
            total += tree_cpu((pid_t)child);
        fclose(file);
    }
    closedir(tasks);
    return total;
}

static double own_cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
           + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

#endif
