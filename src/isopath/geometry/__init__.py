"""How far do outputs move? Divergences, references and the metrics they pull back to weight space."""
