"""The RabbitMQ adapter, built on aiormq. Nothing outside this package knows AMQP."""
