fn main() {
    flow::lm::probe();
}
