pub struct Example {
    pub id: String,
    pub ids: Vec<i64>,
    pub labels: Vec<i64>,
}
