mod medquad;
mod members;
