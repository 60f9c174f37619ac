"""What a spiking network does on hardware, counted; and its energy under named models, beside the quantized network's."""
