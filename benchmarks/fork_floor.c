/* The floor: what the kernel asks for a process, in a program that has next to no memory to copy.
 *
 * A runner as rivals/orders.py tells: fork, note the time, exit, wait; one at a time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static int run(int count, double pause, volatile double *started)
{
    struct timespec rest = {(time_t)pause, (long)((pause - (double)(time_t)pause) * 1e9)};
    double *latency = malloc(sizeof *latency * (size_t)count);
    if (latency == NULL)
        return 1;
    double began = now();
    for (int number = 0; number < count; number++) {
        if (pause > 0)
            nanosleep(&rest, NULL);
        double called = now();
        pid_t pid = fork();
        if (pid < 0)
            return 1;
        if (pid == 0) {
            *started = now();
            _exit(0);
        }
        if (waitpid(pid, NULL, 0) != pid)
            return 1;
        latency[number] = *started - called;
    }
    printf("{\"seconds\": %.9f, \"latency\": [", now() - began);
    for (int number = 0; number < count; number++)
        printf("%s%.9f", number ? ", " : "", latency[number]);
    printf("]}\n");
    free(latency);
    return fflush(stdout);
}

int main(void)
{
    int count, width, failed = 0;
    double pause;
    volatile double *started =
        mmap(NULL, sizeof *started, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (started == MAP_FAILED)
        return 1;
    printf("{\"ready\": true}\n");
    fflush(stdout);
    while (!failed && scanf(" run %d %d %lf", &count, &width, &pause) == 3)
        failed = run(count, pause, started);
    return failed;
}
