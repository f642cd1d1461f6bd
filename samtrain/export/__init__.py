"""Writes models in the formats that other programs read, and checks each file in the library that it is written for."""
