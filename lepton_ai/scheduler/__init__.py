"""Pure decisions: snapshot in, plan out. README.md in this folder has the picture and the order of reading."""
