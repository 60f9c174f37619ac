/* Runs @NAME@ on images from standard input and prints the outputs of each as a line.
 *
 *     cc -std=c99 -O2 -o @STEM@ @STEM@_main.c
 *     ./@STEM@ < images.raw
 *
 * An image is @KIND@, [@CHANNELS@, @ROWS@, @COLUMNS@].
 */
#include <stdio.h>

#include "@STEM@.h"

static @TYPE@ image[@PREFIX@_PIXELS];
static float result[@PREFIX@_OUTPUTS];

int main(void)
{
    while (fread(image, sizeof image, 1, stdin) == 1) {
        @RUN@(image, result);
        for (int i = 0; i < @PREFIX@_OUTPUTS; i++) printf(i ? " %.9g" : "%.9g", result[i]);
        printf("\n");
    }
    return 0;
}
