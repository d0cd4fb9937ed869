"""The verbs a person types. Each module has `main(arguments) -> exit status`; scripts/ and the console entry `handvlm` call them."""
